package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/keeptrusts/gateway/config"
)

// defaultConfig is used when no file is named and it exists.
const defaultConfig = "gateway.yaml"

func checkCommand() *command {
	c := newCommand("check", "", "validates a configuration; prints file:line: problem")
	var path string
	configFlag(c, &path)
	c.run = func(_ context.Context, p program) error {
		name, err := configPath(path)
		if err != nil {
			return err
		}
		cfg, err := config.Load(name)
		if err != nil {
			return printProblems(p, err)
		}
		for _, w := range cfg.Warnings() {
			fmt.Fprintln(p.stdout, w)
		}
		fmt.Fprintf(p.stdout, "%s: ok\n", name)
		return nil
	}
	return c
}

func configFlag(c *command, path *string) {
	c.text(path, "config", "FILE", "", "the configuration; "+defaultConfig+" when there is one here")
	c.letter("c")
}

// configPath gives the file to read: the one named, else the default's.
func configPath(named string) (string, error) {
	if named == "" {
		if _, err := os.Stat(defaultConfig); err != nil {
			return "", misused("no configuration: name it with -c FILE or in KEEPTRUSTS_CONFIG (there is no %s here)", defaultConfig)
		}
		return defaultConfig, nil
	}
	if _, err := os.Stat(named); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("there is no configuration at %s: put one there (in a container: mount it), or name another with -c", named)
		}
		return "", fmt.Errorf("read the configuration: %w", err)
	}
	return named, nil
}

// printProblems writes the problems of a configuration, one a line, to stdout.
func printProblems(p program, err error) error {
	var problems config.Problems
	if !errors.As(err, &problems) {
		return err
	}
	for _, problem := range problems {
		fmt.Fprintln(p.stdout, problem)
	}
	return errSaid
}
