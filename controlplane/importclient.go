package controlplane

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// ErrStalled says that for a minute an import neither took lines nor answered.
var ErrStalled = errors.New("nothing was taken or answered for a minute")

// Import sends lines, each a create body with the sha256 of a token's string, and
// gives each result to each as it comes, until all are answered. An *APIError: the
// control plane refused the call. Any other error: it broke off; what was answered is
// durable, and the same lines can be sent again.
func (c *Client) Import(ctx context.Context, lines io.Reader, each func(Imported)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(importIdle, func() { cancel(ErrStalled) })
	defer stalled.Stop()
	call := streamed{method: http.MethodPost, path: "/v1/tokens/import", media: ndjson, body: movingReader{lines, stalled}}
	err := c.stream(ctx, call, func(r io.Reader) error {
		return readResults(r, func(one Imported) {
			stalled.Reset(importIdle)
			each(one)
		})
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// movingReader puts the stall off while lines are taken.
type movingReader struct {
	r       io.Reader
	stalled *time.Timer
}

func (m movingReader) Read(b []byte) (int, error) {
	n, err := m.r.Read(b)
	m.stalled.Reset(importIdle)
	return n, err
}

func readResults(r io.Reader, each func(Imported)) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 0, 4<<10), 1<<20)
	for lines.Scan() {
		line := bytes.TrimSpace(lines.Bytes())
		if len(line) == 0 {
			continue
		}
		var one Imported
		if err := json.Unmarshal(line, &one); err != nil || one.Line < 1 {
			return errStranger("a result of another form")
		}
		if one.Error != nil {
			text := scrub(*one.Error)
			one.Error = &text
		}
		each(one)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read the results: %w", err)
	}
	return nil
}
