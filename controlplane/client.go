package controlplane

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/record"
	"github.com/keeptrusts/gateway/token"
)

const (
	maxAnswer      = 64 << 20         // bytes: a page of 1,000 large profiles
	defaultTimeout = 30 * time.Second // of a call whose context has no deadline
	reportBatch    = 4000             // entries a call, which keeps it under the server's limit
)

// ClientOptions are what a Client is made of.
type ClientOptions struct {
	// URL of the control plane. http:// is for loopback, or with Insecure.
	URL string
	// Token returns the credential; it is asked at each call.
	Token func() (token.Secret, error)
	// CA is the path of a bundle of certificates trusted instead of the system's, which
	// is followed when it changes; "": the system's.
	CA       string
	Insecure bool

	// What a gateway's process tells of itself; an empty Instance tells nothing.
	Instance, Build string
	MaxStale        time.Duration
}

// Client calls a control plane over HTTP. It is safe for concurrent use and keeps
// connections alive. No error of its holds the credential.
type Client struct {
	o    ClientOptions
	base string
	http *trust
}

// APIError is a control plane's refusal.
type APIError struct {
	Status        int
	Code, Message string
	Param         string // "": none
}

// Error gives "message (code)".
func (e *APIError) Error() string { return e.Message + " (" + e.Code + ")" }

// NewClient checks the options and calls nobody.
func NewClient(o ClientOptions) (*Client, error) {
	u, err := url.Parse(o.URL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("the URL must be like https://host:port")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("the URL must have no user, query or fragment")
	}
	if u.Scheme == "http" && !o.Insecure && !loopback(u.Hostname()) {
		return nil, errors.New("http:// to a host that is not this one would show the token to the network: use https://, or allow it with insecure: true")
	}
	if o.Token == nil {
		panic("BUG: control plane client without a credential")
	}
	way, err := newTrust(o.CA)
	if err != nil {
		return nil, err
	}
	base := strings.TrimSuffix(strings.TrimSuffix(u.String(), "/"), "/v1")
	return &Client{o: o, base: base, http: way}, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Resolve asks for the profile with this digest: token.ErrUnknown when the control
// plane knows none, an *APIError when it refuses the caller, any other error when
// it could not be asked.
func (c *Client) Resolve(ctx context.Context, d token.Digest) (Resolved, error) {
	var answer Resolved
	err := c.Call(ctx, http.MethodPost, "/v1/runtime/resolve", map[string]string{"sha256": d.String()}, &answer)
	var api *APIError
	if errors.As(err, &api) && api.Status == http.StatusNotFound && api.Code == "token_not_found" {
		return Resolved{}, token.ErrUnknown
	}
	if err != nil {
		return Resolved{}, err
	}
	if answer.Profile == nil || answer.Profile.ID == "" {
		return Resolved{}, errStranger("an answer without a profile")
	}
	return answer, nil
}

// Report tells the control plane of this gateway, in several calls where it is long.
func (c *Client) Report(ctx context.Context, r record.Report) error {
	for {
		part := r
		part.LastUsed = r.LastUsed[:min(len(r.LastUsed), reportBatch)]
		part.Misplaced = r.Misplaced[:min(len(r.Misplaced), reportBatch)]
		r.LastUsed, r.Misplaced = r.LastUsed[len(part.LastUsed):], r.Misplaced[len(part.Misplaced):]
		last := len(r.LastUsed) == 0 && len(r.Misplaced) == 0
		part.SignOff = r.SignOff && last
		if err := c.Call(ctx, http.MethodPost, "/v1/runtime/report", part, nil); err != nil || last {
			return err
		}
	}
}

// Whoami returns the profile of the client's own token.
func (c *Client) Whoami(ctx context.Context) (*abac.Profile, error) {
	var answer json.RawMessage
	if err := c.Call(ctx, http.MethodGet, "/v1/whoami", nil, &answer); err != nil {
		return nil, c.unmask(ctx, err)
	}
	var admin struct {
		Administrator bool `json:"administrator"`
	}
	if json.Unmarshal(answer, &admin) == nil && admin.Administrator {
		return nil, ErrAdministrator
	}
	var p abac.Profile
	if err := json.Unmarshal(answer, &p); err != nil || p.ID == "" {
		return nil, &StrangerError{Status: http.StatusOK, what: "an answer without a profile"}
	}
	return &p, nil
}

// ErrAdministrator is the answer to the admin token, which is nobody's profile.
var ErrAdministrator = errors.New("this is the control plane's admin token")

// Call makes one call: in, unless nil, is sent as JSON, out, unless nil, is filled
// from the answer's. path begins with /v1/ and may have a query. A refusal is an *APIError.
func (c *Client) Call(ctx context.Context, method, path string, in, out any) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, defaultTimeout)
		defer cancel()
	}
	secret, err := c.o.Token()
	if err != nil {
		return fmt.Errorf("the credential for the control plane: %w", err)
	}
	req, err := c.request(ctx, method, path, in)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+secret.Reveal())
	res, err := c.do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return fmt.Errorf("read the control plane's answer: %w", err)
	case len(body) > maxAnswer:
		return fmt.Errorf("the control plane's answer is larger than %d bytes", maxAnswer)
	}
	return decode(res, body, out, secret)
}

func (c *Client) do(req *http.Request) (*http.Response, error) {
	res, err := c.http.Do(req)
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // its text has the path, which may hold an id of the caller's choice
	}
	if err != nil {
		return nil, fmt.Errorf("call the control plane: %w", err)
	}
	return res, nil
}

// streamed is a call whose answer is read as it comes.
type streamed struct {
	method, path string
	media        string    // of the answer, and of the body
	body         io.Reader // nil: none
	gzip         bool      // the answer may come packed
}

// stream makes the call and hands its answer to read. A refusal is an *APIError.
func (c *Client) stream(ctx context.Context, s streamed, read func(io.Reader) error) error {
	secret, err := c.o.Token()
	if err != nil {
		return fmt.Errorf("the credential for the control plane: %w", err)
	}
	req, err := c.request(ctx, s.method, s.path, nil)
	if err != nil {
		return err
	}
	if s.body != nil {
		req.Body = io.NopCloser(s.body)
		req.Header.Set("Content-Type", s.media)
	}
	req.Header.Set("Authorization", "Bearer "+secret.Reveal())
	req.Header.Set("Accept", s.media)
	if s.gzip {
		req.Header.Set("Accept-Encoding", "gzip") // asked for here, it is unpacked here
	}
	res, err := c.do(req)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	answer := io.Reader(res.Body)
	if s.gzip && res.Header.Get("Content-Encoding") == "gzip" {
		if answer, err = gzip.NewReader(res.Body); err != nil {
			return fmt.Errorf("unpack the control plane's answer: %w", err)
		}
	}
	if media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); res.StatusCode == http.StatusOK && media == s.media {
		return read(answer)
	}
	body, err := io.ReadAll(io.LimitReader(answer, 1<<20))
	if err != nil {
		return fmt.Errorf("read the control plane's answer: %w", err)
	}
	if err := decode(res, body, nil, secret); err != nil {
		return err
	}
	return errStranger("an answer that is not " + s.media)
}

func (c *Client) request(ctx context.Context, method, path string, in any) (*http.Request, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode a call to the control plane: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, body)
	if err != nil {
		return nil, errors.New("call the control plane: the path can't be used")
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "kt-gateway")
	if c.o.Instance != "" {
		req.Header.Set(headerInstance, c.o.Instance)
		req.Header.Set(headerBuild, c.o.Build)
		if c.o.MaxStale > 0 {
			req.Header.Set(headerMaxStale, c.o.MaxStale.String())
		}
	}
	return req, nil
}

func decode(res *http.Response, body []byte, out any, secret token.Secret) error {
	media, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type"))
	if media != "application/json" {
		return &StrangerError{what: fmt.Sprintf("status %d without JSON", res.StatusCode), Status: res.StatusCode}
	}
	if res.StatusCode < 200 || res.StatusCode > 299 {
		var e wireError
		if err := json.Unmarshal(body, &e); err != nil || e.Error.Code == "" {
			return &StrangerError{what: fmt.Sprintf("status %d without an error's shape", res.StatusCode), Status: res.StatusCode}
		}
		api := &APIError{Status: res.StatusCode, Code: clean(e.Error.Code, secret), Message: clean(e.Error.Message, secret)}
		if e.Error.Param != nil {
			api.Param = clean(*e.Error.Param, secret)
		}
		return api
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(body, out); err != nil {
		return errStranger("JSON of another form")
	}
	return nil
}

// clean keeps what a server says from holding what it was sent.
func clean(s string, secret token.Secret) string {
	if !secret.Empty() {
		s = strings.ReplaceAll(s, secret.Reveal(), secret.Hint())
	}
	return scrub(s)
}
