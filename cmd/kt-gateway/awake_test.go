package main

import (
	"slices"
	"testing"
)

func TestAwakeEnv(t *testing.T) {
	for _, tt := range []struct {
		name      string
		args, env []string
		want      []string
		ok        bool
	}{
		{"a serving command is started anew", []string{"run", "-c", "x"}, []string{"A=1"}, []string{"A=1", "GODEBUG=" + awakeSetting}, true},
		{"other settings stay", []string{"dev"}, []string{"GODEBUG=madvdontneed=1", "B=2"}, []string{"B=2", "GODEBUG=madvdontneed=1," + awakeSetting}, true},
		{"an empty setting is none", []string{"dev"}, []string{"GODEBUG="}, []string{"GODEBUG=" + awakeSetting}, true},
		{"once is enough", []string{"run"}, []string{"GODEBUG=" + awakeSetting}, nil, false},
		{"turned off", []string{"run"}, []string{"GODEBUG=schedtrace=0"}, nil, false},
		{"a command that does not serve", []string{"check"}, nil, nil, false},
		{"no command", nil, nil, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := awakeEnv(tt.args, tt.env)
			if ok != tt.ok || !slices.Equal(got, tt.want) {
				t.Errorf("got %q, %v; want %q, %v", got, ok, tt.want, tt.ok)
			}
		})
	}
}
