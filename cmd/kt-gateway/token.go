package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

func tokenCommands() []*command {
	return []*command{
		createCommand(), listCommand(), showCommand(), rotateCommand(),
		denyCommand("revoke", "ends a token for good"),
		denyCommand("quarantine", "denies a token and keeps it for inquiry; release lifts it"),
		releaseCommand(), identifyCommand(), importCommand(),
	}
}

// minted is the answer to create and rotate: the one time that the string is there.
type minted struct {
	abac.Profile
	Token string `json:"token"`
}

// shown is the answer to show.
type shown struct {
	abac.Profile
	Misplaced *struct {
		At        time.Time `json:"at"`
		GatewayID string    `json:"gateway_id"`
		Client    *string   `json:"client"`
		Command   string    `json:"command"`
	} `json:"misplaced"`
}

func (s *shown) String() string {
	rows := profileRows(&s.Profile)
	if m := s.Misplaced; m != nil {
		from := "an unknown address"
		if m.Client != nil {
			from = printable(*m.Client)
		}
		rows = append(rows, cells("misplaced", fmt.Sprintf("met in a client at %s, from %s at gateway %s", moment(&m.At, ""), from, printable(m.GatewayID))))
		if m.Command != "" {
			rows = append(rows, cells("stop it with", printable(m.Command)))
		}
	}
	return columns(rows...)
}

// denied is the answer to revoke and quarantine.
type denied struct {
	abac.Profile
	Confirmed   int      `json:"confirmed"`
	Unconfirmed []string `json:"unconfirmed"`
}

// output is how an admin command prints its result.
type output struct {
	format string
	quiet  bool
}

func (o *output) add(c *command, quiet string) {
	c.text(&o.format, "output", "FORMAT", "table", "table or json")
	c.letter("o")
	c.toggle(&o.quiet, "quiet", quiet)
	c.letter("q")
}

func (o *output) check() error {
	if o.format != "table" && o.format != "json" {
		return misused("-o: %q is not table or json", o.format)
	}
	return nil
}

// print writes raw as JSON, or what people read through table.
func (o *output) print(p program, raw json.RawMessage, quiet string, table func() string) error {
	text := ""
	switch {
	case o.quiet:
		text = quiet + "\n"
		if quiet == "" {
			text = ""
		}
	case o.format == "json":
		text = indent(raw)
	default:
		text = table()
	}
	_, err := fmt.Fprint(p.stdout, text)
	return err
}

// tokenCommand is what all token commands share.
func tokenCommand(name, args, short string, a *adminFlags, o *output, quiet string) *command {
	c := newCommand("token "+name, args, short)
	a.add(c)
	o.add(c, quiet)
	return c
}

// ids gives the positional arguments, which must be one id, or several.
func (c *command) ids(several bool) ([]string, error) {
	if len(c.pos) == 0 || len(c.pos) > 1 && !several {
		return nil, misused("it wants %s", c.args)
	}
	for _, id := range c.pos {
		if token.WellFormed([]byte(id), []string{"kt_ak_", "kt_gk_"}) {
			return nil, misused("that is a token's string, which others can see on a command line, not its id; `kt-gateway token identify` finds the id and reads the string from stdin")
		}
	}
	return c.pos, nil
}

func tokenPath(id, action string) string {
	path := "/v1/tokens/" + url.PathEscape(id)
	if action != "" {
		path += "/" + action
	}
	return path
}

func listCommand() *command {
	var a adminFlags
	var o output
	c := tokenCommand("list", "", "lists tokens, newest last", &a, &o, "prints the ids alone")
	filters := filterFlags(c, []filter{
		{"purpose", "PURPOSE", "purpose", "only general, gateway_runtime or integration"},
		{"type", "TYPE", "type", "only access or gateway: the older names of general and gateway_runtime"},
		{"team", "TEAM", "team_id", "only those bound to a team"},
		{"status", "STATUS", "status", "only active, quarantined or revoked"},
		{"unused-for", "DURATION", "unused_for", "only those not used for so long, as 720h"},
	})
	c.run = func(ctx context.Context, p program) error {
		if err := o.check(); err != nil {
			return err
		}
		all, err := listAll(ctx, p, &a, "/v1/tokens", filters())
		if err != nil {
			return err
		}
		profiles := make([]abac.Profile, len(all))
		var ids []string
		for i, raw := range all {
			if err := json.Unmarshal(raw, &profiles[i]); err != nil {
				return fmt.Errorf("read the answer: %w", err)
			}
			ids = append(ids, profiles[i].ID)
		}
		raw, err := json.Marshal(map[string]any{"data": all, "next_cursor": nil})
		if err != nil {
			return err
		}
		return o.print(p, raw, strings.Join(ids, "\n"), func() string { return profileTable(profiles) })
	}
	return c
}

// filter is a flag that narrows a list by a key of its query.
type filter struct{ name, value, key, usage string }

// filterFlags adds the flags; what it returns gives the query of those that are set.
func filterFlags(c *command, list []filter) func() url.Values {
	values := make([]string, len(list))
	for i, f := range list {
		c.text(&values[i], f.name, f.value, "", f.usage)
	}
	return func() url.Values {
		query := url.Values{}
		for i, f := range list {
			if values[i] != "" {
				query.Set(f.key, values[i])
			}
		}
		return query
	}
}

// listAll follows the cursor to the end.
func listAll(ctx context.Context, p program, a *adminFlags, path string, query url.Values) ([]json.RawMessage, error) {
	all := []json.RawMessage{}
	for {
		var page struct {
			Data       []json.RawMessage `json:"data"`
			NextCursor *string           `json:"next_cursor"`
		}
		if err := a.call(ctx, p, apiRequest{http.MethodGet, path + "?" + query.Encode(), nil, &page}); err != nil {
			return nil, err
		}
		all = append(all, page.Data...)
		if page.NextCursor == nil || *page.NextCursor == "" || len(page.Data) == 0 {
			return all, nil
		}
		query.Set("cursor", *page.NextCursor)
	}
}

func showCommand() *command {
	var a adminFlags
	var o output
	c := tokenCommand("show", "TOKEN_ID", "shows a token's profile", &a, &o, "prints the id alone")
	c.run = func(ctx context.Context, p program) error {
		ids, err := c.ids(false)
		if err == nil {
			err = o.check()
		}
		if err != nil {
			return err
		}
		var raw json.RawMessage
		var t shown
		if err := a.read(ctx, p, apiRequest{http.MethodGet, tokenPath(ids[0], ""), nil, &t}, &raw); err != nil {
			return err
		}
		return o.print(p, raw, t.ID, t.String)
	}
	return c
}

// read makes a call and keeps the answer both as it came and decoded.
func (a *adminFlags) read(ctx context.Context, p program, req apiRequest, raw *json.RawMessage) error {
	out := req.out
	req.out = raw
	if err := a.call(ctx, p, req); err != nil {
		return err
	}
	if err := json.Unmarshal(*raw, out); err != nil {
		return fmt.Errorf("read the answer of %s: %w", a.url, err)
	}
	return nil
}

func denyCommand(action, short string) *command {
	return statusCommand(action, short, func(raw json.RawMessage) (string, string, error) {
		var res denied
		err := json.Unmarshal(raw, &res)
		return res.ID, res.String(), err
	})
}

func releaseCommand() *command {
	return statusCommand("release", "lifts a quarantine", func(raw json.RawMessage) (string, string, error) {
		var p abac.Profile
		err := json.Unmarshal(raw, &p)
		return p.ID, fmt.Sprintf("%s (%s) is %s.\n", p.ID, printable(p.Name), p.Status), err
	})
}

// statusCommand makes a command that changes the status of tokens, one after the
// other: who stops a leak wants all of them stopped that can be. say gives the id and
// what people read of an answer.
func statusCommand(action, short string, say func(json.RawMessage) (id, text string, err error)) *command {
	var a adminFlags
	var o output
	c := tokenCommand(action, "TOKEN_ID…", short, &a, &o, "prints the id alone")
	c.run = func(ctx context.Context, p program) error {
		ids, err := c.ids(true)
		if err == nil {
			err = o.check()
		}
		if err != nil {
			return err
		}
		answers, together := []json.RawMessage{}, len(ids) > 1 && o.format == "json" && !o.quiet
		err = c.each(p, ids, func(id string) error {
			var raw json.RawMessage
			if err := a.call(ctx, p, apiRequest{http.MethodPost, tokenPath(id, action), nil, &raw}); err != nil {
				return err
			}
			id, text, err := say(raw)
			if err != nil {
				return fmt.Errorf("read the answer of %s: %w", a.url, err)
			}
			if together {
				answers = append(answers, raw)
				return nil
			}
			return o.print(p, raw, id, func() string { return text })
		})
		if !together {
			return err
		}
		raw, problem := json.Marshal(answers)
		if problem == nil {
			problem = o.print(p, raw, "", nil)
		}
		if problem != nil {
			return problem
		}
		return err
	}
	return c
}

// each does it for every id, whatever becomes of the others. Of several, a failure is
// told when it comes: an interrupt must not leave open which were reached.
func (c *command) each(p program, ids []string, do func(id string) error) error {
	if len(ids) == 1 {
		return do(ids[0])
	}
	var failed error
	for i, id := range ids {
		err := do(id)
		if err == nil {
			continue
		}
		what := fmt.Sprintf("argument %d", i+1) // it may be a token's string, cut short
		if strings.HasPrefix(id, "tok_") && abac.ValidID(id) {
			what = id
		}
		fmt.Fprintf(p.stderr, "kt-gateway %s: %s: %s\n", c.name, what, err)
		failed = errSaid
	}
	return failed
}

// String says how far the denial has come.
func (d denied) String() string {
	s := fmt.Sprintf("%s (%s) is %s.\n", d.ID, printable(d.Name), d.Status)
	s += fmt.Sprintf("confirmed    %d\n", d.Confirmed)
	if len(d.Unconfirmed) == 0 {
		return s
	}
	s += fmt.Sprintf("unconfirmed  %s\n", strings.Join(d.Unconfirmed, ", "))
	return s + "An unconfirmed gateway may serve it until it asks again: after its control_plane.fresh_for (30s unless set),\n" +
		"or, while it can't reach the control plane, its control_plane.max_stale (10m unless set) at the latest.\n"
}

func rotateCommand() *command {
	var a adminFlags
	var o output
	var grace, expiresIn string
	c := tokenCommand("rotate", "TOKEN_ID", "mints a successor with the same bindings; the old one ends after the grace", &a, &o,
		"prints the new token's string alone")
	c.text(&grace, "grace", "DURATION", "0s", "how long the old token stays valid")
	c.text(&expiresIn, "expires-in", "DURATION", "", "life of the new token, as 90d; by default it ends when the old one would have")
	c.run = func(ctx context.Context, p program) error {
		ids, err := c.ids(false)
		if err == nil {
			err = o.check()
		}
		if err != nil {
			return err
		}
		overlap, err := parseSpan("--grace", grace)
		if err != nil {
			return err
		}
		body := map[string]any{"grace": overlap.String()}
		if expiresIn != "" {
			expires, err := parseExpiry(expiresIn)
			if err != nil {
				return err
			}
			body["expires_at"] = expires
		}
		var raw json.RawMessage
		var res minted
		if err := a.read(ctx, p, apiRequest{http.MethodPost, tokenPath(ids[0], "rotate"), body, &res}, &raw); err != nil {
			return err
		}
		return o.print(p, raw, res.Token, func() string { return mintedCard(&res) })
	}
	return c
}
