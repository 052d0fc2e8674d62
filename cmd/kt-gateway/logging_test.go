package main

import (
	"bytes"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/keeptrusts/gateway/record"
)

func TestLogLine(t *testing.T) {
	full := record.Record{
		RequestID: "req_1", TokenID: "tok_1", Purpose: "general", Team: "platform", Model: "gpt-5.4-mini", Target: "openai",
		Status: 200, Code: "x", Stream: true, Duration: 1234567 * time.Nanosecond, Upstream: 1200 * time.Microsecond,
		FirstByte: time.Second, InputTokens: 12, OutputTokens: 34, Cost: 1_500_000, Client: "::1",
		ClientRequestID: "a \"quoted\" claim \\ \u2028 é", AgentID: "agent", Action: "execute", GatewayID: "gw", Reason: "allowed",
	}
	for _, tt := range []struct {
		name string
		give record.Record
	}{
		{"every field", full},
		{"nothing known", record.Record{}},
		{"a fraction that ends in zeros", record.Record{Duration: 1010 * time.Microsecond, Upstream: 100 * time.Microsecond, FirstByte: 7 * time.Microsecond}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got, want bytes.Buffer
			l, err := openLogs(&got, "info")
			if err != nil {
				t.Fatal(err)
			}
			r := tt.give
			e := zapcore.Entry{Level: zap.WarnLevel, Time: time.Date(2026, 11, 24, 1, 2, 3, 40_000, time.UTC), Message: "request"}
			core := l.Core().(lineCore)
			if err := core.Write(e, r.Fields()); err != nil {
				t.Fatal(err)
			}
			l.close()
			inner, err := openLogs(&want, "info")
			if err != nil {
				t.Fatal(err)
			}
			plain := inner.Core().(lineCore).Core
			if err := plain.Write(e, r.Fields()); err != nil {
				t.Fatal(err)
			}
			inner.close()
			if got.String() != want.String() {
				t.Errorf("the record's own line differs from zap's\n got %s\nwant %s", got.String(), want.String())
			}
		})
	}
}
