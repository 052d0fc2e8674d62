package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/keeptrusts/gateway/abac"
	"github.com/keeptrusts/gateway/token"
)

// identified is the answer to identify: whose token it is and how far it reaches.
type identified struct {
	Profile abac.Profile `json:"profile"`
	Reach   struct {
		Gateways  []string `json:"gateways"`
		Teams     []string `json:"teams"`
		Providers []string `json:"providers"`
		Models    []string `json:"models"`
	} `json:"reach"`
	Budgets  []counted `json:"budgets"`
	LastUsed *struct {
		At        *time.Time `json:"at"`
		GatewayID string     `json:"gateway_id"`
	} `json:"last_used"`
	Team    *abac.Team `json:"team"`
	Command string     `json:"command"`
}

func identifyCommand() *command {
	var a adminFlags
	var o output
	c := tokenCommand("identify", "", "tells whose token a string is; reads it from stdin, never from the command line", &a, &o, "prints the id alone")
	c.long = "The string is hashed here; only its SHA-256 is sent."
	c.secretArgs = true
	c.run = func(ctx context.Context, p program) error {
		if err := o.check(); err != nil {
			return err
		}
		secret, err := readSecret(ctx, p)
		if err != nil {
			return err
		}
		var raw json.RawMessage
		var res identified
		body := map[string]string{"sha256": secret.Digest().String()}
		if err := a.read(ctx, p, apiRequest{http.MethodPost, "/v1/tokens/identify", body, &res}, &raw); err != nil {
			if strings.HasPrefix(secret.Reveal(), token.Prefix) && !token.WellFormed([]byte(secret.Reveal()), nil) {
				return fmt.Errorf("%w; its checksum is wrong, so a character of it is missing or changed", err)
			}
			return err
		}
		return o.print(p, raw, res.Profile.ID, res.String)
	}
	return c
}

func (i identified) String() string {
	rows := append(profileRows(&i.Profile), "",
		cells("reaches gateways", strings.Join(i.Reach.Gateways, ",")), cells("reaches teams", strings.Join(i.Reach.Teams, ",")),
		cells("reaches providers", strings.Join(i.Reach.Providers, ",")), cells("reaches models", strings.Join(i.Reach.Models, ",")))
	for n := range i.Budgets {
		b := &i.Budgets[n]
		rows = append(rows, cells("spends from", fmt.Sprintf("%s (%s a %s): %s of %s %s left", b.ID, b.Unit, b.Window, b.Left, b.limitText(), b.Unit)))
	}
	if i.LastUsed != nil {
		rows = append(rows, cells("last used at", moment(i.LastUsed.At, "never")), cells("last gateway", i.LastUsed.GatewayID))
	}
	if i.Team != nil && i.Team.Deleted {
		rows = append(rows, cells("denied", "its team is deleted, until it is restored"))
	}
	if i.Command != "" {
		rows = append(rows, cells("stop it with", printable(i.Command)))
	}
	return columns(rows...)
}

// readSecret reads one line from stdin; on a terminal it asks, and shows nothing
// of what is typed.
func readSecret(ctx context.Context, p program) (token.Secret, error) {
	restore := func() {}
	if f, ok := p.stdin.(*os.File); ok {
		if off, ok := echoOff(f); ok {
			fmt.Fprint(p.stderr, "token: ")
			restore = func() { off(); fmt.Fprintln(p.stderr) }
		}
	}
	defer restore()
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := bufio.NewReader(io.LimitReader(p.stdin, 4096)).ReadString('\n')
		got <- answer{line, err}
	}()
	select {
	case <-ctx.Done(): // the terminal must show again what is typed
		return token.Secret{}, errors.New("interrupted")
	case r := <-got:
		line := strings.TrimSpace(r.line)
		if r.err != nil && !errors.Is(r.err, io.EOF) {
			return token.Secret{}, fmt.Errorf("read stdin: %w", r.err)
		}
		if line == "" {
			return token.Secret{}, errors.New("stdin holds no token")
		}
		return token.NewSecret(line), nil
	}
}

// echoOff stops a terminal from showing what is typed; ok is false when f is none.
func echoOff(f *os.File) (restore func(), ok bool) {
	var t syscall.Termios
	if !termios(f, syscall.TCGETS, &t) {
		return nil, false
	}
	quiet := t
	quiet.Lflag &^= syscall.ECHO
	if !termios(f, syscall.TCSETS, &quiet) {
		return nil, false
	}
	return func() { termios(f, syscall.TCSETS, &t) }, true
}

// terminal says whether a person may sit at the other end of f.
func terminal(f *os.File) bool {
	var t syscall.Termios
	return termios(f, syscall.TCGETS, &t)
}

func termios(f *os.File, request uintptr, t *syscall.Termios) bool {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(t)))
	return errno == 0
}
