package store

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed migrations
var files embed.FS

// The folders of migrations. What both backends read alike stands in
// commonMigrations; a file of the same name in a backend's own follows it.
const (
	commonMigrations   = "migrations/common"
	sqliteMigrations   = "migrations/sqlite"
	postgresMigrations = "migrations/postgres"
)

type migration struct {
	version int
	name    string
	sql     string
}

// migrations reads files "0001_name.sql" of a backend's folder and of the common
// one, numbered from 1 without a gap.
func migrations(folder string) ([]migration, error) {
	texts := map[string]string{} // by name
	for _, f := range []string{commonMigrations, folder} {
		entries, err := fs.ReadDir(files, f)
		if err != nil {
			return nil, fmt.Errorf("read migrations: %w", err)
		}
		for _, e := range entries {
			text, err := fs.ReadFile(files, f+"/"+e.Name())
			if err != nil {
				return nil, fmt.Errorf("read migrations: %w", err)
			}
			texts[e.Name()] += string(text)
		}
	}
	list := make([]migration, 0, len(texts))
	for i, file := range slices.Sorted(maps.Keys(texts)) {
		number, name, _ := strings.Cut(strings.TrimSuffix(file, ".sql"), "_")
		if version, err := strconv.Atoi(number); err != nil || version != i+1 {
			return nil, fmt.Errorf("read migrations: %s stands where number %d should", file, i+1)
		}
		list = append(list, migration{i + 1, name, texts[file]})
	}
	return list, nil
}

// migrate applies what is missing, in order, each in a transaction of its own.
func (s *Store) migrate(ctx context.Context, folder string) error {
	list, err := migrations(folder)
	if err != nil {
		return err
	}
	return s.apply(ctx, list)
}

func (s *Store) apply(ctx context.Context, list []migration) error {
	// Two that make it at once: one of them may fail, and finds it there.
	for try := 1; ; try++ {
		_, err := s.write.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS migrations (
			version BIGINT PRIMARY KEY, name TEXT NOT NULL, at BIGINT NOT NULL)`)
		if err == nil {
			break
		}
		// SQLite does not wait for one that sets up the same new file.
		if try == attempts || !made(err) && !again(err) {
			return fmt.Errorf("migrate: %w", err)
		}
		time.Sleep(time.Duration(try) * 10 * time.Millisecond)
	}
	for {
		var done bool
		// One that was taken back may be run again: a process of the version before may
		// hold a lock of its own the other way round.
		err := retried(ctx, func() (err error) {
			done, err = s.migrateOne(ctx, list)
			return err
		}, again)
		if err != nil || done {
			return err
		}
	}
}

// migrateOne looks again inside its transaction: another process may migrate the
// same database at the same time.
func (s *Store) migrateOne(ctx context.Context, list []migration) (done bool, err error) {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return false, fmt.Errorf("migrate: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	if err := s.lockMigrations(ctx, tx); err != nil {
		return false, fmt.Errorf("migrate: %w", err)
	}
	var at int
	if err := tx.QueryRowContext(ctx, `SELECT COALESCE(MAX(version), 0) FROM migrations`).Scan(&at); err != nil {
		return false, fmt.Errorf("migrate: %w", err)
	}
	if at > len(list) {
		return false, fmt.Errorf("%w: it has schema %d, this program knows %d", ErrNewer, at, len(list))
	}
	if at == len(list) {
		return true, nil
	}
	m := list[at]
	if _, err := tx.ExecContext(ctx, m.sql); err != nil {
		return false, fmt.Errorf("migrate to schema %d (%s): %w", m.version, m.name, err)
	}
	if _, err := tx.ExecContext(ctx, `INSERT INTO migrations (version, name, at) VALUES ($1, $2, $3)`,
		m.version, m.name, micros(time.Now())); err != nil {
		return false, fmt.Errorf("migrate to schema %d (%s): %w", m.version, m.name, err)
	}
	if err := tx.Commit(); err != nil {
		return false, fmt.Errorf("migrate to schema %d (%s): %w", m.version, m.name, err)
	}
	return false, nil
}
