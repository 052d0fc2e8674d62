package main

import (
	"strings"
	"testing"
	"time"

	"github.com/keeptrusts/gateway/abac"
)

func environment(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, p := range pairs {
			if k, v, _ := strings.Cut(p, "="); k == name {
				return v, true
			}
		}
		return "", false
	}
}

func TestFlagsWinOverTheEnvironmentAndStandAnywhere(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		env  func(string) (string, bool)
		want string // name, models, ids
	}{
		{"a flag", []string{"--name", "a"}, environment(), "a [] []"},
		{"one dash is as good as two", []string{"-name=a"}, environment(), "a [] []"},
		{"the environment", nil, environment("KEEPTRUSTS_NAME=e", "KEEPTRUSTS_MODEL=x, y"), "e [x y] []"},
		{"a flag wins over the environment", []string{"--name", "a", "--model", "z"}, environment("KEEPTRUSTS_NAME=e", "KEEPTRUSTS_MODEL=x,y"), "a [z] []"},
		{"one letter wins over the environment", []string{"-n", "a"}, environment("KEEPTRUSTS_NAME=e"), "a [] []"},
		{"an empty variable is none", nil, environment("KEEPTRUSTS_NAME="), " [] []"},
		{"flags between and after arguments", []string{"tok_1", "--name", "a", "tok_2", "--model=m", "--model=n"}, environment(), "a [m n] [tok_1 tok_2]"},
		{"after two dashes all are arguments", []string{"--name", "a", "--", "--model", "m"}, environment(), "a [] [--model m]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var name string
			var models []string
			c := newCommand("test", "ID…", "tests")
			c.text(&name, "name", "NAME", "", "its name")
			c.letter("n")
			c.list(&models, "model", "NAME", "a model")
			c.run = checkCommand().run
			if err := c.parse(tt.args, tt.env); err != nil {
				t.Fatal(err)
			}
			got := name + " [" + strings.Join(models, " ") + "] [" + strings.Join(c.pos, " ") + "]"
			if got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestEveryFlagHasAVariableAndHelp(t *testing.T) {
	seen := 0
	for _, c := range commands() {
		help := c.help()
		for _, f := range c.flags {
			seen++
			if f.env != "KEEPTRUSTS_"+strings.ToUpper(strings.ReplaceAll(f.name, "-", "_")) || !strings.Contains(help, f.env) || f.usage == "" {
				t.Errorf("%s --%s: variable %q, help %q", c.name, f.name, f.env, f.usage)
			}
		}
	}
	if seen < 50 {
		t.Errorf("%d flags seen", seen)
	}
}

func TestBudgetsAsTheyAreWritten(t *testing.T) {
	for _, tt := range []struct {
		give string
		want abac.BudgetBinding // ID "*": made up
		bad  bool
	}{
		{give: "usd=5.00/day", want: abac.BudgetBinding{ID: "*", Limit: "5.00", Unit: "usd", Window: "day"}},
		{give: "team:tokens=100/month", want: abac.BudgetBinding{ID: "team", Limit: "100", Unit: "tokens", Window: "month"}},
		{give: "b_day", want: abac.BudgetBinding{ID: "b_day"}},
		{give: "requests=10/total", want: abac.BudgetBinding{ID: "*", Limit: "10", Unit: "requests", Window: "total"}},
		{give: "org:b:usd=5/day", want: abac.BudgetBinding{ID: "org:b", Limit: "5", Unit: "usd", Window: "day"}},
		{give: "usd=5.00", bad: true},
		{give: "usd=/day", bad: true},
		{give: "=5/day", bad: true},
		{give: "usd=5/", bad: true},
		{give: ":usd=5/day", bad: true},
		{give: "b:5", bad: true},
	} {
		t.Run(tt.give, func(t *testing.T) {
			got, err := parseBudget(tt.give, "IDE Alice")
			if tt.bad {
				if err == nil {
					t.Errorf("got %+v, want an error", got)
				}
				return
			}
			if tt.want.ID == "*" && strings.HasPrefix(got.ID, "b_ide-alice_"+got.Window+"_") {
				tt.want.ID = got.ID
			}
			if err != nil || got != tt.want {
				t.Errorf("got %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
	one, _ := parseBudget("usd=5/day", "a")
	two, _ := parseBudget("usd=5/day", "a")
	if one.ID == two.ID {
		t.Error("two tokens of one name share a budget by accident")
	}
}

func FuzzBudgetFlag(f *testing.F) {
	for _, s := range []string{"usd=5.00/day", "b_team", "b:tokens=1000000/month", "a:b:requests=10/total", "usd=5", "=/", ":usd=5/day", "usd=5/day/week", "b:c", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := parseBudget(s, "name")
		if err != nil {
			return
		}
		brought := b.Unit + "=" + b.Limit + "/" + b.Window
		if s != b.ID && s != brought && s != b.ID+":"+brought {
			t.Fatalf("%q is %+v", s, b)
		}
		if b.Limit == "" && (b.Unit != "" || b.Window != "") || b.Limit != "" && (b.Unit == "" || b.Window == "" || b.ID == "") {
			t.Fatalf("%q is half a budget: %+v", s, b)
		}
	})
}

func TestSpansOfTime(t *testing.T) {
	for _, tt := range []struct {
		give string
		want time.Duration
		bad  bool
	}{
		{give: "90d", want: 90 * 24 * time.Hour},
		{give: "2w", want: 14 * 24 * time.Hour},
		{give: "12h", want: 12 * time.Hour},
		{give: "1h30m", want: 90 * time.Minute},
		{give: "0s", want: 0},
		{give: "-1d", bad: true},
		{give: "-1h", bad: true},
		{give: "1.5d", bad: true},
		{give: "99999999999d", bad: true},
		{give: "d", bad: true},
		{give: "", bad: true},
		{give: "5", bad: true},
	} {
		t.Run(tt.give, func(t *testing.T) {
			got, err := parseSpan("--grace", tt.give)
			if (err != nil) != tt.bad || got != tt.want {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestAListenersURLIsReachableFromHere(t *testing.T) {
	for give, want := range map[string]string{
		"0.0.0.0:41003":   "http://127.0.0.1:41003",
		"[::]:41003":      "http://127.0.0.1:41003",
		":41003":          "http://127.0.0.1:41003",
		"10.0.0.7:41003":  "http://10.0.0.7:41003",
		"[::1]:41003":     "http://[::1]:41003",
		"localhost:41003": "http://localhost:41003",
	} {
		if got := baseURL(give); got != want {
			t.Errorf("%s: got %s, want %s", give, got, want)
		}
	}
}

func TestAnAdminTokenIsQuotedForAShell(t *testing.T) {
	for give, want := range map[string]string{"kt_admin_1-2.3": "kt_admin_1-2.3", "a$b": "'a$b'", "it's": `'it'\''s'`} {
		if got := quote(give); got != want {
			t.Errorf("%s: got %s, want %s", give, got, want)
		}
	}
}
