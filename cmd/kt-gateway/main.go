// Command kt-gateway is the Keeptrusts gateway: the data plane, the control
// plane, and the commands that administer them. One short file a subcommand.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// Exit codes: what a shell script may rely on.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	stayAwake(os.Args[1:], os.Environ())
	ctx, cancel := context.WithCancel(context.Background())
	args := os.Args[1:]
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-stop
		cancel()
		<-stop // asked twice: whoever asks does not want to wait for streams
		os.Exit(exitFailed)
	}()
	hup := make(chan os.Signal, 1)
	switch {
	case len(args) == 0:
	case args[0] == "dev" && terminal(os.Stdin):
		signal.Notify(stop, syscall.SIGHUP) // the window was closed: nobody is left to end it
	case args[0] == "dev" || args[0] == "run" || args[0] == "control-plane":
		signal.Notify(hup, syscall.SIGHUP)
	}

	os.Exit(run(ctx, args, program{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, env: os.LookupEnv, hup: hup,
	}))
}

// program is what a command may touch of the process that it runs in.
type program struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	env            func(name string) (string, bool)
	hup            <-chan os.Signal // SIGHUP; nil never comes
}

// run runs the command that args name and returns the exit code. ctx ends at
// SIGINT or SIGTERM.
func run(ctx context.Context, args []string, p program) int {
	if len(args) == 0 {
		fmt.Fprint(p.stderr, usage())
		return exitUsage
	}
	cmd, rest, err := find(args)
	switch {
	case errors.Is(err, errHelp):
		fmt.Fprint(p.stdout, usage())
		return exitOK
	case err == nil:
		err = cmd.parse(rest, p.env)
	}
	if errors.Is(err, errHelp) {
		fmt.Fprint(p.stdout, cmd.help())
		return exitOK
	}
	if err == nil {
		err = cmd.run(ctx, p)
	}
	return report(p.stderr, cmd, err)
}

// report writes err as one sentence and returns the exit code that it means.
func report(stderr io.Writer, cmd *command, err error) int {
	name := "kt-gateway"
	if cmd != nil {
		name += " " + cmd.name
	}
	var misuse usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &misuse):
		fmt.Fprintf(stderr, "%s: %s; `%s -h` shows how\n", name, misuse, name)
		return exitUsage
	case errors.Is(err, errSaid):
		return exitFailed
	default:
		fmt.Fprintf(stderr, "%s: %s\n", name, err)
		return exitFailed
	}
}

// errSaid is a failure that the command's own output has told already.
var errSaid = errors.New("failed, as said")

// usageError is a command line that makes no sense.
type usageError string

func (e usageError) Error() string { return string(e) }

func misused(format string, args ...any) error { return usageError(fmt.Sprintf(format, args...)) }
