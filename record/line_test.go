package record

import (
	"bytes"
	"encoding/json"
	"math"
	"math/big"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

func sample() *Record {
	return &Record{
		Time:      time.Date(2026, 11, 1, 12, 0, 0, 123456789, time.FixedZone("", 3600)),
		RequestID: "req_1", TokenID: "tok_1", Purpose: "general", Team: "platform",
		Model: "gpt-5.4-mini", Target: "openai", Status: 200, Stream: true,
		Duration: 12345678 * time.Nanosecond, Upstream: 11 * time.Millisecond, FirstByte: 250 * time.Microsecond,
		InputTokens: 1200, OutputTokens: 34, Cost: 368_000, Estimated: true, Client: "10.0.0.1:5000",
		ClientRequestID: "mine", Action: "execute", GatewayID: "gw_local", Reason: "allowed",
	}
}

func logger(w zapcore.WriteSyncer) *zap.Logger {
	c := zapcore.EncoderConfig{TimeKey: "ts", LevelKey: "level", MessageKey: "msg", EncodeTime: zapcore.ISO8601TimeEncoder, EncodeLevel: zapcore.LowercaseLevelEncoder}
	return zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(c), w, zap.InfoLevel))
}

func TestLineHoldsTheDesignsKeysInOrder(t *testing.T) {
	want := `{"ts":"2026-11-01T11:00:00.123456Z","request_id":"req_1","token_id":"tok_1","purpose":"general","team":"platform",` +
		`"model":"gpt-5.4-mini","target":"openai","status":200,"code":"","stream":true,"ms":12.345,"upstream_ms":11,"first_byte_ms":0.25,` +
		`"input_tokens":1200,"output_tokens":34,"cost":"0.000368","client":"10.0.0.1:5000",` +
		`"client_request_id":"mine","agent_id":"","action":"execute","gateway_id":"gw_local","reason":"allowed","estimated":true}`
	if got := string(sample().AppendJSON(nil)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestLogLineHoldsTheSameWithoutEmptyClaims(t *testing.T) {
	var out bytes.Buffer
	r := sample()
	log := logger(zapcore.AddSync(&out))
	if e := log.Check(zap.InfoLevel, "request"); e != nil {
		e.Write(r.Fields()...)
	}
	_, got, _ := strings.Cut(out.String(), `"msg":"request",`)
	_, want, _ := strings.Cut(string(r.AppendJSON(nil)), `Z",`)
	want = strings.Replace(want, `"agent_id":"",`, "", 1) + "\n"
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestWhatTheProviderToldIsNotCalledEstimated(t *testing.T) {
	var out bytes.Buffer
	r := sample()
	r.Estimated = false
	logger(zapcore.AddSync(&out)).Info("request", r.Fields()...)
	if strings.Contains(out.String(), "estimated") || strings.Contains(string(r.AppendLog(nil, "info", r.Time, "request")), "estimated") {
		t.Errorf("the log says %s", out.String())
	}
	if b := r.AppendJSON(nil); !bytes.HasSuffix(b, []byte(`,"estimated":false}`)) {
		t.Errorf("the record says %s", b)
	}
}

func TestAnEmptyRecordKeepsTheDesignsKeys(t *testing.T) {
	var out bytes.Buffer
	logger(zapcore.AddSync(&out)).Info("request", (&Record{}).Fields()...)
	for _, key := range []string{"ts", "level", "msg", "request_id", "token_id", "purpose", "team", "model", "target", "status", "code", "stream",
		"ms", "upstream_ms", "first_byte_ms", "input_tokens", "output_tokens", "cost", "client"} {
		if !strings.Contains(out.String(), `"`+key+`":`) {
			t.Errorf("no %s in %s", key, out.String())
		}
	}
}

func TestAmountsAreExactDecimals(t *testing.T) {
	for _, tc := range []struct {
		nano int64
		want string
	}{
		{0, "0"}, {1, "0.000000001"}, {10, "0.00000001"}, {1_500_000_000, "1.5"}, {123_000_000_000, "123"}, {-1, "-0.000000001"},
		{-2_000_000_000, "-2"}, {math.MaxInt64, "9223372036.854775807"}, {math.MinInt64, "-9223372036.854775808"},
	} {
		if got := string(AppendUSD(nil, tc.nano)); got != tc.want {
			t.Errorf("%d: %s, want %s", tc.nano, got, tc.want)
		}
	}
}

func FuzzUSD(f *testing.F) {
	for _, n := range []int64{0, 1, -1, 999_999_999, 1_000_000_001, math.MinInt64} {
		f.Add(n)
	}
	f.Fuzz(func(t *testing.T, nano int64) {
		got, ok := new(big.Rat).SetString(string(AppendUSD(nil, nano)))
		if !ok || got.Cmp(big.NewRat(nano, 1_000_000_000)) != 0 {
			t.Errorf("%d is %s", nano, AppendUSD(nil, nano))
		}
	})
}

// FuzzRecord: whatever a claim holds, both lines are one line of valid JSON, and
// read back as the claim with its invalid bytes replaced.
func FuzzRecord(f *testing.F) {
	for _, s := range []string{"", "plain", "a\nb\r\t\x00\x1f\x7f", `"\`, "\xff\xc3", "é日\u2028\U0001f600", "\xed\xa0\x80", "\ufffd", "</script>"} {
		f.Add(s, int64(len(s)), int64(1))
	}
	f.Fuzz(func(t *testing.T, claim string, n, d int64) {
		r := Record{RequestID: "r", Model: claim, ClientRequestID: claim, AgentID: claim, InputTokens: n, Cost: n, Duration: time.Duration(d)}
		var out bytes.Buffer
		logger(zapcore.AddSync(&out)).Info("request", r.Fields()...)
		for _, line := range []string{string(r.AppendJSON(nil)) + "\n", out.String()} {
			if strings.Count(line, "\n") != 1 || !utf8.ValidString(line) {
				t.Fatalf("not one line of UTF-8: %q", line)
			}
			var got struct {
				Claim       string `json:"client_request_id"`
				Cost        string
				InputTokens int64 `json:"input_tokens"`
			}
			if err := json.Unmarshal([]byte(line), &got); err != nil {
				t.Fatalf("%v in %q", err, line)
			}
			want := strings.Map(func(c rune) rune { return c }, claim) // each invalid byte becomes U+FFFD
			if got.Claim != want || got.InputTokens != n {
				t.Errorf("read back %+v, want %q", got, want)
			}
		}
	})
}
