package main

import (
	"fmt"
	"net"
	"strings"
	"time"
)

// answering is one call that the provider answers.
type answering struct {
	u    *upstream
	conn net.Conn
	script
	wanted
}

const patience = 30 * time.Second // of a provider that says no more

// do answers as the script says; false: the connection is spent.
func (a *answering) do() bool {
	limit := max(a.MaxTokens, a.MaxCompletionTokens)
	if limit > 0 {
		a.output = min(a.output, limit)
	}
	billed := served{input: a.input, output: a.output}
	switch {
	case a.usage == "zero", a.script.do == "error" && a.usage == "none", a.script.do == "garbage", a.script.do == "empty":
		billed = served{}
	case a.Stream && a.script.do != "error":
		billed.output = 0 // it grows
	}
	a.u.note(a.id, func(s *served) {
		s.calls++
		s.limit = limit
		s.input += billed.input
		s.output += billed.output
	})
	time.Sleep(a.delay)
	switch a.script.do {
	case "whole":
		return a.write(a.head("200 OK", "application/json", len(a.whole())) + a.whole())
	case "stream":
		return a.stream(a.output)
	case "error":
		return a.refuse()
	case "cut":
		if a.Stream {
			a.stream(min(a.at, a.output))
		} else {
			a.write((a.head("200 OK", "application/json", len(a.whole())) + a.whole())[:180])
		}
		a.end()
	case "stall":
		if a.Stream {
			a.stream(min(a.at, a.output))
		} else {
			a.write((a.head("200 OK", "application/json", len(a.whole())) + a.whole())[:180])
		}
		a.silence()
	case "garbage":
		a.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nhello")
	case "empty":
		a.end()
	default: // silent
		a.silence()
	}
	return false
}

func (a *answering) write(s string) bool {
	_, err := a.conn.Write([]byte(s))
	return err == nil
}

// end makes the connection's close abrupt if the script says so.
func (a *answering) end() {
	if tcp, ok := a.conn.(*net.TCPConn); ok && a.reset {
		_ = tcp.SetLinger(0)
	}
}

// silence says nothing until the peer closes.
func (a *answering) silence() {
	_ = a.conn.SetReadDeadline(time.Now().Add(patience))
	var b [1]byte
	_, _ = a.conn.Read(b[:])
}

func (a *answering) head(status, contentType string, length int) string {
	h := "HTTP/1.1 " + status + "\r\nContent-Type: " + contentType + "\r\nx-request-id: up_" + a.id + "\r\n"
	if length < 0 {
		return h + "Transfer-Encoding: chunked\r\n\r\n"
	}
	return fmt.Sprintf("%sContent-Length: %d\r\n\r\n", h, length)
}

func (a *answering) usageObject() string {
	in, out := a.input, a.output
	if a.usage == "zero" {
		in, out = 0, 0
	}
	return fmt.Sprintf(`{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d}`, in, out, in+out)
}

func (a *answering) whole() string {
	usage := ""
	if a.usage != "none" {
		usage = `,"usage":` + a.usageObject()
	}
	return `{"id":"chatcmpl-` + a.id + `","object":"chat.completion","created":1767225600,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"` +
		strings.Repeat(" tok", int(a.output)) + `"},"finish_reason":"stop"}]` + usage + `}`
}

func (a *answering) refuse() bool {
	usage := ""
	if a.usage != "none" {
		usage = `,"usage":` + a.usageObject()
	}
	body := `{"error":{"message":"scripted","type":"server_error","param":null,"code":null}` + usage + `}`
	return a.write(a.head(fmt.Sprintf("%d Scripted", a.status), "application/json", len(body)) + body)
}

func (a *answering) event(choices, usage string) string {
	data := `data: {"id":"chatcmpl-` + a.id + `","object":"chat.completion.chunk","created":1767225600,"model":"m","choices":[` + choices + `]` + usage + "}\n\n"
	return fmt.Sprintf("%x\r\n%s\r\n", len(data), data)
}

// stream sends so many chunks of a token each; all of them, and it ends in order.
func (a *answering) stream(chunks int64) bool {
	if !a.write(a.head("200 OK", "text/event-stream", -1) + a.event(`{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}`, "")) {
		return false
	}
	content := a.event(`{"index":0,"delta":{"content":" tok"},"finish_reason":null}`, "")
	for range chunks {
		time.Sleep(a.gap)
		if !a.write(content) {
			return false
		}
		if a.usage != "zero" {
			a.u.note(a.id, func(s *served) { s.output++ })
		}
	}
	if a.script.do != "stream" {
		return true
	}
	end := a.event(`{"index":0,"delta":{},"finish_reason":"stop"}`, "")
	if a.Options != nil && a.Options.Usage && a.usage != "none" {
		end += a.event("", `,"usage":`+a.usageObject())
	}
	return a.write(end + "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
}
