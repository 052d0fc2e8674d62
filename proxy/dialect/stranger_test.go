package dialect

import "testing"

func TestAKeyThatNobodyKnowsLeadsOutWhereANameSaysSo(t *testing.T) {
	for _, tt := range []struct {
		member  string
		outside bool
	}{
		{`"top_k":5`, false}, {`"seed":null`, false}, {`"min_p":0.1`, false},
		{`"use_beam_search":true`, true}, {`"add_generation_note":true`, false},
		{`"simulator":{"chunks":20,"usage":{"prompt_tokens":5}}`, false},
		{`"provider":{"order":["a","b"],"allow_fallbacks":false}`, false},
		{`"transforms":["middle-out"]`, false},
		{`"web_search_options":{}`, true}, {`"plugins":[]`, true}, {`"extra":{"File_IDs":["f1"]}`, true},
		{`"conversation":"c1"`, true}, {`"previous_response_id":"r1"`, true}, {`"prompt":{"id":"p"}`, true},
		{`"style":"see https://example.com/x"`, true}, {`"data_sources":[{}]`, true}, {`"x":{"URL":"a"}`, true},
	} {
		body := []byte(`{"model":"m","messages":[{"role":"user","content":"hi"}],` + tt.member + `}`)
		var c Call
		if p := ReadChat(body, &c); p != nil {
			t.Fatalf("%s: %v", tt.member, p)
		}
		if got := c.Bound(body).Outside; got != tt.outside {
			t.Errorf("%s: outside is %v", tt.member, got)
		}
	}
}
