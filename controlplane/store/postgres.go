package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	pgConnections = 16
	pgIdle        = 5 * time.Minute
	pgDial        = 5 * time.Second
	pgTrusted     = time.Second      // a connection idle for longer is tried before it is used
	pgSilent      = 10 * time.Second // a server that acknowledges nothing for so long is gone
	// pgStatement bounds one statement: a caller has given up long before.
	pgStatement = "30s"
	// pgFrozen is how long the database waits for the next word of a transaction: what it
	// has locked, every replica waits for.
	pgFrozen = "5s"
)

// openPostgres opens a database of a PostgreSQL server, or of one that speaks its
// protocol. READ COMMITTED is enough: each kind of write takes its turn by a row.
func openPostgres(ctx context.Context, dsn string) (*Store, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, errors.New("open database: the URL can't be read; it is like postgres://USER@HOST:PORT/NAME?sslmode=verify-full")
	}
	cfg.ConnectTimeout = pgDial
	cfg.DialFunc = (&net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: pgSilent / 2, Interval: pgSilent / 4, Count: 2}, Control: giveUp}).DialContext
	for key, value := range map[string]string{
		"application_name": "kt-gateway", "statement_timeout": pgStatement, "idle_in_transaction_session_timeout": pgFrozen,
		"default_transaction_isolation": "read committed", "timezone": "UTC",
	} {
		if _, set := cfg.RuntimeParams[key]; !set {
			cfg.RuntimeParams[key] = value
		}
	}
	s := newStore()
	s.turns, s.config = true, cfg
	s.write = stdlib.OpenDB(*cfg, stdlib.OptionShouldPing(doubtful))
	s.write.SetMaxOpenConns(pgConnections)
	s.write.SetMaxIdleConns(pgConnections)
	s.write.SetConnMaxIdleTime(pgIdle)
	s.read = s.write
	where := fmt.Sprintf("open database %s at %s:%d", cfg.Database, cfg.Host, cfg.Port)
	if err := s.migrate(ctx, postgresMigrations); err != nil {
		_ = s.write.Close()
		return nil, fmt.Errorf("%s: %w", where, plain(err))
	}
	if err := s.tryNotify(ctx); err != nil {
		_ = s.write.Close()
		return nil, fmt.Errorf("%s: %w", where, plain(err))
	}
	return s, nil
}

// giveUp bounds how long a call waits for a machine that is gone.
func giveUp(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	const userTimeout = 0x12 // TCP_USER_TIMEOUT, in milliseconds
	var failed error
	err := c.Control(func(fd uintptr) {
		failed = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, userTimeout, int(pgSilent.Milliseconds()))
	})
	return errors.Join(err, failed)
}

// doubtful says whether a connection is to be tried before it is used.
func doubtful(_ context.Context, p stdlib.ShouldPingParams) bool {
	return p.IdleDuration > pgTrusted || stirred(p.Conn.PgConn().Conn())
}

// stirred says whether something came on an idle connection: most likely its end. A
// statement sent on it could fail without a word on whether it was done.
func stirred(conn net.Conn) bool {
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = over.NetConn() // of TLS
	}
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	quiet := false
	// Not Read: the driver may have a read of its own under way, and this would wait for it.
	err = raw.Control(func(fd uintptr) {
		_, _, err := syscall.Recvfrom(int(fd), make([]byte, 1), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		quiet = errors.Is(err, syscall.EAGAIN)
	})
	return err != nil || !quiet
}

// plain takes what a connection's error tells of its settings out of it.
func plain(err error) error {
	var c *pgconn.ConnectError
	if errors.As(err, &c) {
		return fmt.Errorf("the server can't be reached or refuses the login: %w", c.Unwrap())
	}
	return err
}

// The time is that of the server once the lock is had: replicas' clocks may differ by
// more than holders are given to return what is recalled.
const takeTurn = `UPDATE turns SET taken = taken + 1 WHERE name = 'leases'
	RETURNING taken, (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::BIGINT`

// turn waits until nobody else moves money: what SQLite's one writer gives for
// nothing. Whoever changes tokens or budgets, too, takes it after head's lock.
func (t *Tx) turn(ctx context.Context) error {
	if !t.turns {
		return nil
	}
	var now int64
	if err := t.tx.QueryRowContext(ctx, takeTurn).Scan(&t.taken, &now); err != nil {
		return fmt.Errorf("take a turn: %w", err)
	}
	if !t.clocked {
		t.now = timeOf(now)
	}
	return nil
}

// lockMigrations keeps other processes from migrating until the transaction ends.
func (s *Store) lockMigrations(ctx context.Context, tx *sql.Tx) error {
	if !s.turns {
		return nil
	}
	_, err := tx.ExecContext(ctx, `LOCK TABLE migrations IN ACCESS EXCLUSIVE MODE`)
	return err
}
