package proxy

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/keeptrusts/gateway/abac"
)

// readModels prints, for each body in hexadecimal on a line, what Python reads as
// its model.
const readModels = `
import sys, json
for line in sys.stdin:
    try:
        v = json.loads(bytes.fromhex(line))
        m = v.get("model") if isinstance(v, dict) else None
        print("model " + (m if isinstance(m, str) else "?").encode("unicode_escape").decode())
    except Exception as e:
        print("unreadable " + type(e).__name__)
`

// disputes are bodies that two parsers may read as of two models: chat, which the
// token is bound to, and mapped, which the gateway serves to others.
func disputes() [][]byte {
	var all [][]byte
	add := func(s ...string) {
		for _, one := range s {
			all = append(all, []byte(one))
		}
	}
	const tail = `,"messages":[{"role":"user","content":"hi"}]}`
	keys := []string{
		`model`, `Model`, `MODEL`, `mODEL`, `modeL`, `mode\u006c`, `\u006dodel`, `\u006D\u006f\u0064\u0065\u006c`, `mod\u0065l`, `MODE\u004c`,
		`model `, ` model`, `model\u0000`, `model\ud800`, `mo\/del`, `model\t`, "ｍodel", "mоdel", `model\u200b`, `mode\u2113`, `mod\u0435l`, `\ufeffmodel`,
		`mode\\u006c`, `models`, `engine`, `deployment`, `model_id`, `modelId`, `model.`, `["model"]`,
	}
	for _, k := range keys {
		for _, order := range []string{`{"model":"chat","%s":"mapped"`, `{"%s":"mapped","model":"chat"`, `{"%s":"mapped"`, `{"%s":"chat","model":"mapped"`, `{"model":"chat","stream":false,"x":{},"%s":"mapped"`} {
			add(fmt.Sprintf(order, k) + tail)
		}
	}
	values := []string{
		`"mapped"`, `"chat"`, `"\u006dapped"`, `"\u0063hat"`, `"chat\u0000mapped"`, `"chat "`, `" chat"`, `"Chat"`, `"CHAT"`, `"chat\n"`, `"chat\/"`, `"chat/../mapped"`,
		`["chat","mapped"]`, `["chat"]`, `{"model":"chat"}`, `null`, `true`, `1`, `""`, `"chat,mapped"`, `"chat\ud800"`, `"\ud83d\ude00"`, `"chat\\"`, `'chat'`, `chat`,
		`"cha\u0074"`, `"chat" "mapped"`, `"chat"+"mapped"`, `"ｃhat"`, `"сhat"`, `"chat` + "\x00" + `"`, `"chat` + "\n" + `"`, "\"chat\xff\"", "\"\xc1\xa3hat\"", `"*"`, `"!mapped"`, `NaN`, `-Infinity`, `1e999`, `0x1`,
	}
	for _, v := range values {
		add(`{"model":`+v+tail, `{"model":`+v+`,"model":"chat"`+tail, `{"model":"chat","model":`+v+tail)
	}
	plain, other := `{"model":"chat"`+tail, `{"model":"mapped"`+tail
	for _, between := range []string{"", " ", "\n", ",", ";", "\x00", "\x1e", "\ufeff", "//", "/*", "\v", "\u2028", "\r\n\r\n"} {
		add(plain+between+other, other+between+plain, between+plain, plain+between, between+other)
	}
	add(`[`+plain+`]`, `[`+other+`]`, `"`+plain, plain[:len(plain)-1], plain+"}", plain+"]", `null`, `"mapped"`, ``, ` `, `{}`, `{`, `}`)
	for _, ws := range []string{" ", "\t", "\n", "\r", "\f", "\v", "\u00a0", "\u3000", "\ufeff", "\x00", "#", "/**/", "//\n"} {
		add(`{`+ws+`"model"`+ws+`:`+ws+`"chat"`+ws+tail, `{"model"`+ws+`:"chat","Model":"mapped"`+tail, `{"x":1,`+ws+`"model":"mapped"`+tail)
	}
	for _, x := range []string{
		`"x":NaN`, `"x":Infinity`, `"x":-0`, `"x":01`, `"x":1.`, `"x":.5`, `"x":+1`, `"x":1e400`, `"x":"\x41"`, `"x":"\u12"`, `"x":tru`, `"x":TRUE`, `"x":undefined`, `"x":'a'`, `x:1`, `"x":1,`, `,"x":1`, `"x"`, `"x":`, `:1`,
		`"x":{"model":"mapped"}`, `"x":[{"model":"mapped"}]`, `"x":"\",\"model\":\"mapped"`, `"x":"\\","model":"mapped"`, `"x":"\\\",\"model\":\"mapped"`, `"stream_options":{"model":"mapped"}`,
		`"extra_body":{"model":"mapped"}`, `"x":{"a":1,"a":2}`, `"x":1,"x":2`, `"X":1,"x":2`, `"":1`, `"\u0000":1`, `"__proto__":{"model":"mapped"}`, `"constructor":{"model":"mapped"}`, `"stream":true,"Stream":false`, `"ſtream":true`, `"stream_option\u017f":{}`,
	} {
		add(`{"model":"chat",`+x+tail, `{`+x+`,"model":"chat"`+tail)
	}
	for _, depth := range []int{1, 100, 511, 512, 513, 2000, 20_000} {
		add(`{"model":"chat","x":`+strings.Repeat("[", depth)+strings.Repeat("]", depth)+tail,
			`{"x":`+strings.Repeat(`{"model":`, depth)+`"mapped"`+strings.Repeat("}", depth)+`,"model":"chat"`+tail,
			`{"x":`+strings.Repeat("[", depth)+strings.Repeat("]", depth-1)+`,"model":"mapped"`+tail)
	}
	for _, s := range []string{plain, other, `{"model":"chat","model":"mapped"` + tail} {
		for _, order := range []binary.AppendByteOrder{binary.LittleEndian, binary.BigEndian} {
			for _, bom := range []string{"", "\ufeff"} {
				var b16, b32 []byte
				for _, r := range bom + s {
					b32 = order.AppendUint32(b32, uint32(r))
				}
				for _, u := range utf16.Encode([]rune(bom + s)) {
					b16 = order.AppendUint16(b16, u)
				}
				all = append(all, b16, b32)
			}
		}
		add("\xef\xbb\xbf"+s, strings.ReplaceAll(s, `"`, "“"), "\x1f\x8b"+s)
	}
	return all
}

// Python is the reader that differs most from ours, and what most providers are
// written in.
func TestNoBodyReachesAModelOutsideTheProfile(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Fatal("python3 is needed as the second reader")
	}
	bodies := disputes()
	if len(bodies) < 300 {
		t.Fatalf("%d bodies are too few", len(bodies))
	}
	u := answering(t, whole(200, completion))
	g := start(t, plainConfig(u.url))
	key := g.mint(func(p *abac.Profile) {
		p.Purpose, p.Bindings.Providers, p.Bindings.Models = abac.Integration, []string{"main"}, []string{"chat"}
	})
	types := []string{"application/json", "application/json; charset=utf-8", "application/json; charset=utf-16", "application/json;charset=\"utf-7\"", "text/plain", "application/x-www-form-urlencoded"}
	sent, passed, refused := 0, 0, map[string]int{}
	send := func(body, contentType string) {
		sent++
		r := g.do(call(key, body, "Content-Type: "+contentType))
		switch {
		case r.status == 200:
			passed++
		case r.problem().Code != "" && r.status >= 400 && r.status < 500:
			refused[r.problem().Code]++
		default:
			t.Errorf("%.200q: %d %q", body, r.status, r.body)
		}
	}
	for i, b := range bodies {
		send(string(b), types[0])
		if i%9 == 0 {
			send(string(b), types[1+i/9%(len(types)-1)])
		}
	}
	send(`{"model":"chat","x":"+ACIALAAi-model+ACIAOgAi-mapped"}`, types[3])
	for _, charset := range []string{"utf-7", "\"UTF-16\"", "latin1", "utf-8; charset=utf-7", ""} {
		// An upstream that minds the charset would read another body.
		r := g.do(call(key, `{"model":"chat","x":"+ACIALAAi-model+ACIAOgAi-mapped"}`, "Content-Type: application/json; Charset="+charset))
		if r.status != 415 || r.problem().Code != codeMediaType {
			t.Errorf("charset %q: %d %q", charset, r.status, r.body)
		}
	}

	var in bytes.Buffer
	forwarded := u.seen()
	for _, raw := range forwarded {
		_, _, body := parts(raw)
		in.WriteString(hex.EncodeToString([]byte(body)) + "\n")
	}
	cmd := exec.Command("python3", "-c", readModels)
	cmd.Stdin = &in
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3: %v", err)
	}
	read := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(read) != len(forwarded) || passed != len(forwarded) {
		t.Fatalf("%d passed, %d were forwarded, Python read %d", passed, len(forwarded), len(read))
	}
	outside := 0
	for i, model := range read {
		if model != "model chat" {
			outside++
			_, _, body := parts(forwarded[i])
			t.Errorf("Python reads %s in %s", model, strconv.Quote(body[:min(len(body), 200)]))
		}
	}
	t.Logf("%d sent (%d bodies), %d forwarded, %d refused %v, %d outside the profile", sent, len(bodies), len(forwarded), sent-passed, refused, outside)
	if passed < 30 || refused["model_not_allowed"] < 10 || refused["ambiguous_key"] < 30 || refused["invalid_json"] < 100 {
		t.Errorf("the bodies prove little")
	}
}
