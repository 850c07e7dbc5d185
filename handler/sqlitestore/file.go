package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"userconnectivity/handler/eventlog"
)

const (
	// schemaVersion is that of the tables below, kept in the file.
	schemaVersion = 1
	// readers bounds the connections that read.
	readers = 4
)

// schema makes the tables. The columns beside the documents are those that a query needs.
const schema = `
CREATE TABLE events (
	id          TEXT NOT NULL UNIQUE,
	user        TEXT NOT NULL,
	epoch       INTEGER NOT NULL,
	detected_at INTEGER NOT NULL, -- ms since 1970
	document    TEXT NOT NULL
);
CREATE INDEX events_by_user ON events (user, epoch, id);
CREATE INDEX events_by_age ON events (detected_at);
CREATE TABLE users (
	id       TEXT NOT NULL PRIMARY KEY,
	document TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE profiles (
	id       TEXT NOT NULL PRIMARY KEY,
	etag     TEXT NOT NULL,
	document TEXT NOT NULL
);
`

// file is the open file: the writer with its goroutine, and the readers.
type file struct {
	reader                           *sql.DB
	readEvent, readUser, readProfile *sql.Stmt
	*writer
}

func (s *Store) openFile(ctx context.Context) (_ *file, err error) {
	path := *s.path.Load()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		if forbidden(err) {
			return nil, fmt.Errorf("%w: %w. %s", eventlog.ErrUnwritable, err, cure)
		}
		return nil, fmt.Errorf("%w: %w", eventlog.ErrUnavailable, err)
	}
	var opened []interface{ Close() error }
	defer func() {
		for i := len(opened) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, opened[i].Close())
		}
	}()

	w, err := openWriter(ctx, s.dataSource(url.Values{"_txlock": {"immediate"}}), s.retention, s.classify)
	if err != nil {
		return nil, err
	}
	opened = append(opened, w)

	f := &file{writer: w}
	if f.reader, err = sql.Open("sqlite", s.dataSource(url.Values{"_query_only": {"1"}})); err != nil {
		return nil, err
	}
	opened = append(opened, f.reader)
	f.reader.SetMaxOpenConns(readers)
	f.reader.SetMaxIdleConns(readers)
	for statement, query := range map[**sql.Stmt]string{
		&f.readEvent:   "SELECT document FROM events WHERE id = ?",
		&f.readUser:    "SELECT document FROM users WHERE id = ?",
		&f.readProfile: "SELECT document, etag FROM profiles WHERE id = ?",
	} {
		if *statement, err = f.reader.PrepareContext(ctx, query); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *file) close() error {
	return errors.Join(f.writer.Close(), f.reader.Close())
}

// page reads one event more than asked for, to know whether a further page follows.
func (f *file) page(ctx context.Context, user string, limit int, after position) (page eventlog.Page, err error) {
	rows, err := f.reader.QueryContext(ctx,
		`SELECT document FROM events WHERE user = ? AND (epoch, id) < (?, ?) ORDER BY epoch DESC, id DESC LIMIT ?`,
		user, after.epoch, after.id, limit+1)
	if err != nil {
		return page, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		if len(page.Records) == limit {
			last := page.Records[limit-1].Event
			page.Continuation = eventlog.Continuation(user, position{last.Epoch, last.ID}.String())
			break
		}
		var document eventlog.Document
		if err := rows.Scan(jsonColumn{&document}); err != nil {
			return page, err
		}
		page.Records = append(page.Records, document.Record())
	}
	return page, rows.Err()
}

// dataSource is the driver's name of the file. With synchronous=NORMAL a commit reaches the operating
// system, so it outlives the process; a checkpoint makes it outlive the machine.
func (s *Store) dataSource(options url.Values) string {
	options.Set("_busy_timeout", fmt.Sprint(s.busyTimeout.Milliseconds()))
	options.Set("_journal_mode", "WAL")
	options.Set("_synchronous", "NORMAL")
	options.Add("_pragma", "cache_size(-16000)")           // KiB
	options.Add("_pragma", "journal_size_limit(67108864)") // bytes: what a checkpoint leaves of a grown WAL
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: *s.path.Load()}).EscapedPath(), RawQuery: options.Encode()}).String()
}

// prepareSchema makes the tables in a new file, and refuses a file of a later version.
func prepareSchema(ctx context.Context, db *sql.DB) error {
	version, err := userVersion(ctx, db)
	if err != nil || version == schemaVersion {
		return err
	}
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to roll back
	// Another process may have made the tables since.
	switch version, err = userVersion(ctx, tx); {
	case err != nil || version == schemaVersion:
		return err
	case version != 0:
		return fmt.Errorf("file has version %d of the tables, this program knows %d: use the newer program, or move the file away", version, schemaVersion)
	}
	if _, err := tx.ExecContext(ctx, schema+fmt.Sprintf("PRAGMA user_version = %d", schemaVersion)); err != nil {
		return err
	}
	return tx.Commit()
}

func userVersion(ctx context.Context, db interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
},
) (version int, err error) {
	err = db.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version)
	return version, err
}

// classify adds eventlog.ErrUnavailable to an error that may pass: a lock, a full disk, a file that cannot be
// opened. It adds eventlog.ErrUnwritable instead where the file or its folder may not be written by this process.
func (s *Store) classify(err error) error {
	var fault *sqlite.Error
	if !errors.As(err, &fault) {
		return err
	}
	switch fault.Code() & 0xff { // the primary code
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM:
		if cause := s.unwritable(); cause != nil {
			return fmt.Errorf("%w: %w: %w. %s", eventlog.ErrUnwritable, cause, err, cure)
		}
		return fmt.Errorf("%w: %w", eventlog.ErrUnavailable, err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL:
		return fmt.Errorf("%w: %w", eventlog.ErrUnavailable, err)
	}
	return err
}

// unwritable returns why this process may not write the file or make files beside it, nil when it may or when that
// cannot be told.
func (s *Store) unwritable() error {
	path := *s.path.Load()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if forbidden(err) {
		return err
	}
	f, err = os.CreateTemp(filepath.Dir(path), ".writable-*")
	if err == nil {
		err = errors.Join(f.Close(), os.Remove(f.Name()))
	}
	if forbidden(err) {
		return err
	}
	return nil
}

// forbidden reports whether err stays until somebody changes rights or mounts.
func forbidden(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS)
}

// isRefusal reports whether the fault is that of one event: the same write of another may succeed.
func isRefusal(err error) bool {
	var junk unreadable
	var fault *sqlite.Error
	switch {
	case err == nil:
		return false
	case errors.As(err, &junk) || errors.Is(err, eventlog.ErrID):
		return true
	case errors.As(err, &fault):
		switch fault.Code() & 0xff {
		case sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH:
			return true
		}
	}
	return false
}
