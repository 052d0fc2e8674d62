package dialect

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestWhatACallNamesBesideItsModel(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		body   string // behind {"model":"m",
		models string // joined with a comma
		param  string
		tier   string
		stored string
		routed string // as an adapter that reads everything
	}{
		{body: `"messages":[]`},
		{body: `"models":["a","b\u0031"]`, models: "a,b1", param: "models"},
		{body: `"models":null`},
		{body: `"mod\u0065ls":["a"]`, models: "a", param: "models"},
		{body: `"fallbacks":[{"m":["a","b"]},"c"]`, models: "a,b,c", param: "fallbacks"},
		{body: `"safety_model":"guard"`, models: "guard", param: "safety_model"},
		{body: `"tools":[{"type":"image_generation","model":"gpt-image-1"}]`, models: "gpt-image-1", param: "tools.model"},
		{body: `"tools":[{"type":"image_generation","image_generation":{"\u006dodel":"gpt-image-1"}}]`, models: "gpt-image-1", param: "tools.model"},
		{body: `"tools":[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":{"model":{"type":"string"},"file_id":{"type":"string"}}}}}]`},
		{body: `"tools":[{"name":"f","input_schema":{"properties":{"vector_store_ids":{"type":"array"}}}}]`},

		{body: `"service_tier":"auto"`},
		{body: `"service_tier":"default"`},
		{body: `"service_tier":null`},
		{body: `"service_tier":"flex"`, tier: "service_tier"},
		{body: `"service_tier":"priority"`, tier: "service_tier"},
		{body: `"service_tier":"defaul\u0074"`, tier: "service_tier"},
		{body: `"service_tier":7`, tier: "service_tier"},

		{body: `"previous_response_id":"resp_1"`, stored: "previous_response_id"},
		{body: `"previous_response_id":null`},
		{body: `"conversation":{"id":"conv_1"}`, stored: "conversation"},
		{body: `"prompt":{"id":"pmpt_1"}`, stored: "prompt"},
		{body: `"prompt":"once upon a time"`},
		{body: `"container":"cntr_1"`, stored: "container"},
		{body: `"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file-1"}}]}]`, stored: "messages.file_id"},
		{body: `"messages":[{"role":"user","content":[{"type":"file","file":{"f\u0069le_id":"file-1"}}]}]`, stored: "messages.file_id"},
		{body: `"messages":[{"role":"user","content":[{"type":"input_file","file_id":"file-1"}]}]`, stored: "messages.file_id"},
		{body: `"messages":[{"role":"user","content":[{"type":"document","source":{"type":"file","file_id":"file-1"}}]}]`, stored: "messages.file_id"},
		{body: `"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":null,"file_data":"data:"}}]}]`},
		{body: `"messages":[{"role":"user","content":"the file_id is \"file_id\":\"f\""}]`},
		{body: `"messages":[{"role":"assistant","audio":{"id":"audio_1"}}]`, stored: "messages.audio"},
		{body: `"messages":[{"role":"assistant","audio":null}]`},
		{body: `"tools":[{"type":"file_search","vector_store_ids":["vs_1"]}]`, stored: "tools.vector_store_ids"},
		{body: `"tools":[{"type":"code_interpreter","container":"cntr_1"}]`, stored: "tools.container"},
		{body: `"tools":[{"type":"code_interpreter","container":{"type":"auto"}}]`},
		{body: `"tools":[{"type":"code_interpreter","container":{"type":"auto","file_ids":["f"]}}]`, stored: "tools.file_ids"},
		{body: `"tools":[{"type":"mcp","connector_id":"connector_1"}]`, stored: "tools.connector_id"},
		{body: `"messages":[{"role":"tool","tool_call_id":"call_1","content":"x"}]`},

		{body: `"route":"fallback"`, routed: "route"},
		{body: `"provider":{"order":["a"]}`, routed: "provider"},
		{body: `"preset":"p"`, routed: "preset"},
		{body: `"compound_custom":{"models":{"answering_model":"a"}}`, routed: "compound_custom"},
		{body: `"data_sources":[{}]`, routed: "data_sources"},
		{body: `"extra_body":{"models":["a"]}`, routed: "extra_body"},
		{body: `"api_base":"https://elsewhere.example"`, routed: "api_base"},
		{body: `"temperature":1,"user":"u","metadata":{"model":"x","file_id":"y"},"response_format":{"type":"text"}`},
	} {
		var c Call
		if p := ReadChat([]byte(`{"model":"m",`+tt.body+`}`), &c); p != nil {
			t.Errorf("%s: %+v", tt.body, p)
			continue
		}
		var models []string
		for _, m := range c.Beside.Models {
			models = append(models, string(m))
		}
		b := &c.Beside
		if got := strings.Join(models, ","); got != tt.models || b.Param != tt.param || b.Tier != tt.tier || b.Stored != tt.stored || b.Routed("litellm") != tt.routed {
			t.Errorf("%s: models %q at %q, tier %q, stored %q, routed %q", tt.body, got, b.Param, b.Tier, b.Stored, b.Routed("litellm"))
		}
	}
}

func TestAFieldThatSomeTakeForOneOfTheTableIsRefused(t *testing.T) {
	t.Parallel()
	for i := range fields {
		name := fields[i].name
		for _, key := range []string{strings.ToUpper(name), strings.Replace(name, "s", "ſ", 1), strings.Replace(name, "k", "\u212a", 1)} {
			if key == name || key == "DATASOURCES" || key == "dataſources" {
				continue
			}
			var c Call
			p := ReadChat([]byte(`{"model":"m","`+key+`":"x"}`), &c)
			if p == nil || p.Code != ambiguousKey {
				t.Errorf("%s: %+v", key, p)
			}
		}
	}
}

// What a provider that folds keys would read is read in no message and no tool.
func TestAKeyInsideThatSomeTakeForAnotherIsRefused(t *testing.T) {
	t.Parallel()
	for body, param := range map[string]string{
		`"tools":[{"type":"x","Model":"other"}]`:                                          "tools.model",
		`"tools":[{"type":"x","x":{"MODEL":"other"}}]`:                                    "tools.model",
		`"tools":[{"type":"code_interpreter","Container":"c"}]`:                           "tools.container",
		`"tools":[{"type":"file_search","Vector_Store_Ids":["v"]}]`:                       "tools.vector_store_ids",
		`"tools":[{"type":"file_search","vector_\u017ftore_ids":["v"]}]`:                  "tools.vector_store_ids",
		"\"tools\":[{\"type\":\"file_search\",\"vector_\u017ftore_ids\":[\"v\"]}]":        "tools.vector_store_ids",
		`"messages":[{"role":"user","content":[{"type":"file","file":{"File_id":"f"}}]}]`: "messages.file_id",
		`"messages":[{"role":"user","content":[{"type":"file","file":{"FILE_ID":"f"}}]}]`: "messages.file_id",
		`"messages":[{"role":"user","Content":[{"type":"file","file":{"file_id":"f"}}]}]`: "messages.content",
		`"messages":[{"role":"assistant","Audio":{"id":"a"}}]`:                            "messages.audio",
	} {
		var c Call
		if p := ReadChat([]byte(`{"model":"m",`+body+`}`), &c); p == nil || p.Code != ambiguousKey || p.Param != param {
			t.Errorf("%s: %+v", body, p)
		}
	}
}

func TestTooManyOrTooLongModelsBesideAreRefused(t *testing.T) {
	t.Parallel()
	for _, value := range []string{
		`["` + strings.Join(slices.Repeat([]string{"m"}, maxOthers+1), `","`) + `"]`,
		`["` + strings.Repeat("m", maxModel+1) + `"]`,
		`[""]`, `["\ud800"]`,
	} {
		var c Call
		if p := ReadChat([]byte(`{"model":"m","models":`+value+`}`), &c); p == nil || p.Code != invalidValue || p.Param != "models" {
			t.Errorf("%.40s: %+v", value, p)
		}
	}
}

func TestAdaptersReadWhatTheirProvidersDo(t *testing.T) {
	t.Parallel()
	var c Call
	if p := ReadChat([]byte(`{"model":"m","provider":{},"data_sources":[]}`), &c); p != nil {
		t.Fatal(p)
	}
	for adapter, want := range map[string]string{
		"openai": "", "vllm": "", "openrouter": "provider", "azure": "data_sources", "openai-compatible": "provider", "litellm": "provider",
	} {
		if got := c.Beside.Routed(adapter); got != want {
			t.Errorf("%s: %q", adapter, got)
		}
	}
}

func hintsOf(t *testing.T, value string) hints {
	t.Helper()
	s := scanner{b: []byte(value)}
	if !s.skip(0) {
		t.Fatalf("%s: %s", value, s.fault)
	}
	return s.hints
}

// A key that is looked for and not hinted at would pass unread.
func TestWhateverIsLookedForInsideIsHintedAt(t *testing.T) {
	for _, k := range append([]string{"audio"}, keptAnywhere...) {
		for _, before := range []string{"", "x_id", "_id_id_"} {
			for _, k := range []string{k, strings.ToUpper(k), strings.ToUpper(k[:1]) + k[1:], strings.Replace(k, "s", "\u017f", 1), strings.ReplaceAll(k, "s", "\u017f"), fmt.Sprintf(`\u%04x`, k[0]) + k[1:]} {
				if body := `{"messages":[{"content":[{"` + before + `":1,"` + k + `":"x"}]}]}`; !hintsOf(t, body).anywhere {
					t.Errorf("%s is not", body)
				}
			}
		}
	}
	for _, k := range []string{"model", "container", "Model", "MODEL", "containeR"} {
		if !hintsOf(t, `[{"type":"x","`+k+`":"x"}]`).inTool {
			t.Errorf("a tool's %s is not", k)
		}
	}
	if h := hintsOf(t, `{"messages":[{"role":"user","content":"a file_id, audio\u0041","tool_call_id":"x","annotations":[]}]}`); h != (hints{}) {
		t.Errorf("others are too, %+v: every such body is read twice", h)
	}
}
