package store

import (
	"bufio"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestOpenRefusesWhatItCantRead(t *testing.T) {
	ctx := context.Background()
	for _, dsn := range []string{"", "kt.db", "sqlite:", "sqlite::memory:", "postgres://u:secret@h/db", "mysql:x"} {
		s, err := Open(ctx, dsn)
		if err == nil {
			_ = s.Close()
			t.Errorf("%q was opened", dsn)
			continue
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: the error holds the password: %v", dsn, err)
		}
	}
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk")
	if err := os.WriteFile(junk, []byte(strings.Repeat("no database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{junk, dir, filepath.Join(dir, "none", "k.db")} {
		if s, err := Open(ctx, "sqlite:"+file); err == nil {
			_ = s.Close()
			t.Errorf("%s was opened", file)
		}
	}
}

func TestADatabaseOfTheFutureIsLeftAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "k.db")
	s := open(t, file)
	insert(t, s, sample(s, "n"))
	if _, err := s.write.Exec(`INSERT INTO migrations (version, name, at) VALUES (2000, 'later', 0)`); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), "sqlite:"+file); !errors.Is(err, ErrNewer) || !strings.Contains(err.Error(), "2000") {
		t.Fatalf("got %v", err)
	}
}

func TestAMigrationIsWholeOrNot(t *testing.T) {
	ctx := context.Background()
	s := open(t, filepath.Join(t.TempDir(), "k.db"))
	list, err := migrations(sqliteMigrations)
	if err != nil {
		t.Fatal(err)
	}
	next := len(list) + 1
	broken := append(list, migration{next, "broken", `CREATE TABLE half (a BIGINT); INSERT INTO nowhere VALUES (1);`})
	if _, err := s.migrateOne(ctx, broken); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Fatalf("got %v", err)
	}
	mended := append(list, migration{next, "mended", `CREATE TABLE half (a BIGINT)`})
	if _, err := s.migrateOne(ctx, mended); err != nil {
		t.Fatalf("the broken one left something: %v", err)
	}
	if done, err := s.migrateOne(ctx, mended); !done || err != nil {
		t.Fatalf("again: %v %v", done, err)
	}
}

func TestTwoProcessesMayOpenANewDatabaseAtOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "k.db")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s, err := Open(context.Background(), "sqlite:"+file)
			if err != nil {
				t.Error(err)
				return
			}
			defer func() { _ = s.Close() }()
			n := sample(s, "n")
			if err := s.Update(context.Background(), noon, func(tx *Tx) error { return tx.Insert(context.Background(), &n) }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s := open(t, file)
	if head, err := s.Head(context.Background()); head != 4 || err != nil {
		t.Errorf("head %d, %v", head, err)
	}
}

// TestWhatWasAnsweredSurvivesAKill runs itself as a child that writes and prints
// each id once its Update has returned, and kills it amid that.
func TestWhatWasAnsweredSurvivesAKill(t *testing.T) {
	if file := os.Getenv("STORE_TEST_CHILD"); file != "" {
		s := open(t, file)
		for {
			n := insert(t, s, sample(s, "n"))
			if _, err := os.Stdout.WriteString(n.Profile.ID + "\n"); err != nil {
				return
			}
		}
	}
	file := filepath.Join(t.TempDir(), "k.db")
	child := exec.Command(os.Args[0], "-test.run=^TestWhatWasAnsweredSurvivesAKill$")
	child.Env = append(os.Environ(), "STORE_TEST_CHILD="+file)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var ids []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), IDPrefix) || len(lines.Text()) != IDLen {
			continue
		}
		if ids = append(ids, lines.Text()); len(ids) == 60 {
			_ = child.Process.Kill()
		}
	}
	_ = child.Wait()
	s := open(t, file)
	for _, id := range ids {
		if _, err := s.Token(context.Background(), id); err != nil {
			t.Errorf("%s was answered and is gone: %v", id, err)
		}
	}
	head, err := s.Head(context.Background())
	if err != nil || len(ids) < 60 || head < int64(len(ids)) || head > int64(len(ids))+1 {
		t.Errorf("%d ids, head %d, %v", len(ids), head, err)
	}
}
