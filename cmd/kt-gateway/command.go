package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"
)

// errHelp says that help was asked for.
var errHelp = flag.ErrHelp

// command is one subcommand: its flags, and what it does once they are parsed.
type command struct {
	name  string // as typed, "token create"
	args  string // positional arguments, as help shows them; "" takes none
	short string // one sentence
	long  string // more of it, for help alone
	run   func(ctx context.Context, p program) error

	set   *flag.FlagSet
	flags []flagInfo
	pos   []string // what stood on the command line beside the flags

	secretArgs bool     // an argument would be a secret: it is refused without being repeated
	envSet     []string // names of the flags that the environment set
}

// flagInfo is what help says of a flag.
type flagInfo struct {
	name, short string // short: a second, one-letter name; "" has none
	value       string // what the value is called; "" for a switch
	env         string // the variable that sets it too
	usage       string
}

func newCommand(name, args, short string) *command {
	set := flag.NewFlagSet(name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	return &command{name: name, args: args, short: short, set: set}
}

// commands makes every command anew: each keeps its flags' values.
func commands() []*command {
	return slices.Concat(
		[]*command{devCommand(), runCommand(), controlPlaneCommand()},
		tokenCommands(), budgetCommands(),
		[]*command{usageCommand(), priceCommand(), explainCommand(), checkCommand(), healthCommand(), versionCommand()},
	)
}

// find gives the command that args open with, and the arguments left to it.
// Without an error, or with one about that command, the command is never nil.
func find(args []string) (*command, []string, error) {
	first, rest := args[0], args[1:]
	switch first {
	case "-h", "-help", "--help", "help":
		if len(rest) == 0 || first != "help" {
			return nil, nil, errHelp
		}
		cmd, _, err := find(append(rest, "-h"))
		return cmd, []string{"-h"}, err
	case "-version", "--version":
		first = "version"
	case "tokens":
		first = "token"
	}
	if strings.HasPrefix(first, "-") {
		return nil, nil, misused("a command must stand before flag %s", first)
	}
	group := false
	for _, c := range commands() {
		words := strings.Fields(c.name)
		if words[0] != first {
			continue
		}
		if len(words) == 1 {
			return c, rest, nil
		}
		group = true
		if len(rest) > 0 && rest[0] == words[1] {
			return c, rest[1:], nil
		}
	}
	if !group {
		return nil, nil, misused("unknown command %q", first)
	}
	return findInGroup(first, rest)
}

// findInGroup answers for a group's name without one of its commands.
func findInGroup(group string, rest []string) (*command, []string, error) {
	g := newCommand(group, "COMMAND", "")
	var names []string
	for _, c := range commands() {
		if name, ok := strings.CutPrefix(c.name, group+" "); ok {
			names = append(names, name)
			g.long += fmt.Sprintf("  %-12s %s\n", name, c.short)
		}
	}
	if len(rest) == 0 {
		return nil, nil, misused("%s wants one of %s", group, strings.Join(names, ", "))
	}
	if isHelp(rest[0]) {
		return g, rest, nil
	}
	return nil, nil, misused("unknown command %q; %s has %s", group+" "+rest[0], group, strings.Join(names, ", "))
}

func isHelp(arg string) bool {
	return arg == "-h" || arg == "-help" || arg == "--help"
}

// text adds a flag that takes a string; value names it in help.
func (c *command) text(p *string, name, value, fallback, usage string) {
	c.set.StringVar(p, name, fallback, usage)
	c.note(name, value, usage)
}

// toggle adds a flag that is on when it stands there.
func (c *command) toggle(p *bool, name, usage string) {
	c.set.BoolVar(p, name, false, usage)
	c.note(name, "", usage)
}

// number adds a flag that takes a count of at least 1; 0 is absent.
func (c *command) number(p *int64, name, usage string) {
	c.set.Func(name, usage, func(s string) error {
		var n int64
		if _, err := fmt.Sscanf(s+"\n", "%d\n", &n); err != nil || n < 1 {
			return errors.New("a whole number of at least 1")
		}
		*p = n
		return nil
	})
	c.note(name, "N", usage)
}

// list adds a flag that may stand several times; its variable separates with commas.
func (c *command) list(p *[]string, name, value, usage string) {
	c.set.Func(name, usage, func(s string) error {
		*p = append(*p, s)
		return nil
	})
	c.note(name, value, usage+"; may stand several times")
}

func (c *command) note(name, value, usage string) {
	env := "KEEPTRUSTS_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
	c.flags = append(c.flags, flagInfo{name: name, value: value, env: env, usage: usage})
}

// letter gives the flag added last a one-letter name too.
func (c *command) letter(short string) {
	f := &c.flags[len(c.flags)-1]
	f.short = short
	c.set.Var(c.set.Lookup(f.name).Value, short, f.usage)
}

// parse reads the arguments, then the environment for every flag that they do
// not set. Flags may stand between and after positional arguments.
func (c *command) parse(args []string, env func(string) (string, bool)) error {
	var after []string
	if i := slices.Index(args, "--"); i >= 0 {
		args, after = args[:i], args[i+1:]
	}
	for {
		if err := c.set.Parse(args); err != nil {
			if errors.Is(err, flag.ErrHelp) {
				return errHelp
			}
			return usageError(err.Error())
		}
		if c.set.NArg() == 0 {
			break
		}
		c.pos = append(c.pos, c.set.Arg(0))
		args = c.set.Args()[1:]
	}
	c.pos = append(c.pos, after...)
	if c.run == nil {
		return errHelp
	}
	if c.args == "" && len(c.pos) > 0 {
		if c.secretArgs {
			return misused("the string belongs on stdin: others can see it on a command line")
		}
		return misused("unexpected argument %q", c.pos[0])
	}
	return c.fromEnv(env)
}

func (c *command) fromEnv(env func(string) (string, bool)) error {
	given := map[string]bool{}
	c.set.Visit(func(f *flag.Flag) { given[f.Name] = true })
	for _, f := range c.flags {
		value, ok := env(f.env)
		if !ok || value == "" || given[f.name] || given[f.short] {
			continue
		}
		values := []string{value}
		if strings.HasSuffix(f.usage, "several times") {
			values = strings.Split(value, ",")
		}
		for _, v := range values {
			if err := c.set.Set(f.name, strings.TrimSpace(v)); err != nil {
				return misused("%s: %s", f.env, err)
			}
		}
		c.envSet = append(c.envSet, f.name)
	}
	return nil
}

// given says whether a flag stands on the command line or in the environment.
func (c *command) given(name string) bool {
	found := false
	c.set.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}

func (c *command) help() string {
	var b strings.Builder
	line := "usage: kt-gateway " + c.name
	if len(c.flags) > 0 {
		line += " [flags]"
	}
	if c.args != "" {
		line += " " + c.args
	}
	fmt.Fprintln(&b, line)
	if c.short != "" {
		fmt.Fprintf(&b, "\n%s%s.\n", strings.ToUpper(c.short[:1]), c.short[1:])
	}
	if c.long != "" {
		fmt.Fprintf(&b, "\n%s\n", strings.TrimRight(c.long, "\n"))
	}
	if len(c.flags) > 0 {
		fmt.Fprint(&b, "\nFlags, each with the variable that sets it too:\n")
	}
	for _, f := range c.flags {
		name := "--" + f.name
		if f.short != "" {
			name = "-" + f.short + ", " + name
		}
		if f.value != "" {
			name += " " + f.value
		}
		fmt.Fprintf(&b, "  %-32s %s (%s)\n", name, f.usage, f.env)
	}
	return b.String()
}

func usage() string {
	var b strings.Builder
	fmt.Fprint(&b, "usage: kt-gateway COMMAND [flags]\n\nThe gateway for AI calls that knows whose token it is.\n\n")
	for _, c := range commands() {
		fmt.Fprintf(&b, "  %-18s %s\n", c.name, c.short)
	}
	fmt.Fprint(&b, "\n`kt-gateway COMMAND -h` shows a command's flags. Exit codes: 0 done, 1 failed, 2 wrong usage.\n")
	return b.String()
}
