package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The provider's stream: so many chunks of content, one at each interval.
const (
	streamChunks   = 50
	streamInterval = 20 * time.Millisecond
	// streamEvents are the chunks of content, the role, the finish and [DONE].
	streamEvents = streamChunks + 3
)

const wholeAnswer = `{
  "id": "chatcmpl-BenchBenchBenchBenchBenchBench",
  "object": "chat.completion",
  "created": 1767225600,
  "model": "gpt-5.4-mini",
  "choices": [
    {
      "index": 0,
      "message": {"role": "assistant", "content": "It is the same answer for everyone.", "refusal": null, "annotations": []},
      "logprobs": null,
      "finish_reason": "stop"
    }
  ],
  "usage": {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0}
  },
  "service_tier": "default"
}
`

const answerHead = "HTTP/1.1 200 OK\r\nopenai-processing-ms: 7\r\nopenai-version: 2020-10-01\r\nx-request-id: req_bench\r\n"

func streamEvent(choices, usage string) string {
	return `data: {"id":"chatcmpl-Bench","object":"chat.completion.chunk","created":1767225600,"model":"gpt-5.4-mini","choices":[` +
		choices + `],"usage":` + usage + "}\n\n"
}

var (
	roleEvent    = streamEvent(`{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}`, "null")
	contentEvent = streamEvent(`{"index":0,"delta":{"content":" chunk"},"finish_reason":null}`, "null")
	finishEvent  = streamEvent(`{"index":0,"delta":{},"finish_reason":"stop"}`, "null")
	usageEvent   = streamEvent("", `{"prompt_tokens":19,"completion_tokens":50,"total_tokens":69,"prompt_tokens_details":{"cached_tokens":0},"completion_tokens_details":{"reasoning_tokens":0}}`)
	doneEvent    = "data: [DONE]\n\n"

	// streamBytes is what a client that did not ask for usage must be given.
	streamBytes = len(roleEvent) + streamChunks*len(contentEvent) + len(finishEvent) + len(doneEvent)
)

func httpChunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

// mock is the provider: it reads no more of a request than it must, and has
// every byte of its answers ready.
func mock(ln net.Listener) error {
	whole := []byte(answerHead + "Content-Type: application/json\r\nContent-Length: " + strconv.Itoa(len(wholeAnswer)) + "\r\n\r\n" + wholeAnswer)
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_ = mockConn(c, whole) // the peer has closed it
		}()
	}
}

func mockConn(c net.Conn, whole []byte) error {
	r := bufio.NewReaderSize(c, 16<<10)
	body := make([]byte, 0, 4<<10)
	for {
		length, err := readHead(r)
		if err != nil {
			return err
		}
		if cap(body) < length {
			body = make([]byte, length)
		}
		body = body[:length]
		if _, err := io.ReadFull(r, body); err != nil {
			return err
		}
		if !bytes.Contains(body, []byte(`"stream":true`)) {
			if _, err := c.Write(whole); err != nil {
				return err
			}
			continue
		}
		if err := mockStream(c, bytes.Contains(body, []byte(`"include_usage":true`))); err != nil {
			return err
		}
	}
}

// readHead reads a request's head and gives its Content-Length.
func readHead(r *bufio.Reader) (int, error) {
	length := 0
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) == 0 && !first {
			return length, nil
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if len(name) == len("Content-Length") && strings.EqualFold(string(name), "Content-Length") {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, err
			}
		}
		if len(name) == len("Transfer-Encoding") && strings.EqualFold(string(name), "Transfer-Encoding") {
			return 0, http.ErrNotSupported
		}
	}
}

var (
	streamOpening = []byte(answerHead + "Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n" + httpChunk(roleEvent))
	streamContent = []byte(httpChunk(contentEvent))
)

func mockStream(c net.Conn, usage bool) error {
	if _, err := c.Write(streamOpening); err != nil {
		return err
	}
	begin := time.Now()
	for i := range streamChunks {
		time.Sleep(time.Until(begin.Add(time.Duration(i+1) * streamInterval)))
		if _, err := c.Write(streamContent); err != nil {
			return err
		}
	}
	end := httpChunk(finishEvent)
	if usage {
		end += httpChunk(usageEvent)
	}
	_, err := c.Write([]byte(end + httpChunk(doneEvent) + "0\r\n\r\n"))
	return err
}
