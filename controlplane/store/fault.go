package store

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// again says whether the database asks for the whole transaction to be run again.
func again(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "40001" || pg.Code == "40P01" // serialization_failure, deadlock_detected
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return true
	}
	return false
}

// unsure is the error of a commit: it may have taken place where the connection broke.
type unsure struct{ err error }

func (u *unsure) Error() string { return "commit: " + u.err.Error() }
func (u *unsure) Unwrap() error { return u.err }

// lost says whether a connection ended that was there: what was not committed by then
// has not happened.
func lost(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "57P01", "57P02", "57P03", // admin_shutdown, crash_shutdown, cannot_connect_now
			"25P03": // idle_in_transaction_session_timeout
			return true
		}
		return strings.HasPrefix(pg.Code, "08") // connection exceptions
	}
	var refused *pgconn.ConnectError
	if errors.As(err, &refused) {
		return false // the next one will be, too
	}
	var network net.Error
	return pgconn.SafeToRetry(err) || errors.As(err, &network) && !network.Timeout() ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone)
}

// taken says whether a row with this key exists already.
func taken(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "23505" // unique_violation
	}
	var e *sqlite.Error
	return errors.As(err, &e) &&
		(e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || e.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY)
}

// made says whether something with this name was made meanwhile: PostgreSQL's
// IF NOT EXISTS does not cover two that make it at once.
func made(err error) bool {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return false
	}
	switch pg.Code {
	case "23505", "42710", "42P07": // unique_violation, duplicate_object, duplicate_table
		return true
	}
	return false
}
