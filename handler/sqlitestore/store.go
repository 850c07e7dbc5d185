// Package sqlitestore is the embedded event log: events with the history of their status, users records and
// profiles in one SQLite file.
//
// One goroutine writes. It merges the calls that wait at the same time into one transaction, and each caller
// gets its own answer once that is committed. Readers have connections of their own and never wait for it.
// The process may be killed at any moment: what a call returned for is in the file, and no lock stays behind.
// (A loss of power may take the last commits with it, but never the order or the consistency of the file.)
// Two processes may have the file open at once, as when one replaces the other.
package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
)

// DefaultRetention is how long an event is kept after it was detected.
const DefaultRetention = 30 * 24 * time.Hour

// DefaultBusyTimeout is how long a transaction waits for that of another process.
const DefaultBusyTimeout = 5 * time.Second

// Store is the event log in one file. It is safe for concurrent use. Its methods return an error that wraps
// eventlog.ErrUnavailable while the file cannot be opened or stays locked, eventlog.ErrUnwritable where this process may
// not write it at all, and eventlog.ErrClosed after Close.
type Store struct {
	usual       string
	fallback    string // "" for none
	retention   time.Duration
	busyTimeout time.Duration

	// path is the one in use: usual, or fallback where usual may not be written.
	path atomic.Pointer[string]

	repaired atomic.Int64

	// open guards file and closed; taking it can be given up with a context.
	open   chan struct{}
	file   *file
	closed bool
}

// Option changes a setting of a new store.
type Option func(*Store)

// WithRetention sets how long an event is kept after it was detected; 0 keeps events for ever.
func WithRetention(d time.Duration) Option { return func(s *Store) { s.retention = d } }

// WithBusyTimeout sets how long a transaction waits for that of another process, in whole milliseconds.
func WithBusyTimeout(d time.Duration) Option { return func(s *Store) { s.busyTimeout = d } }

// WithFallback sets a second path, for where this process may not write the first one.
func WithFallback(path string) Option { return func(s *Store) { s.fallback = path } }

// New returns the store in the file at path. The file and its folder are made, and the file is opened, at
// the first use; an attempt that went wrong is not remembered.
func New(path string, options ...Option) *Store {
	s := &Store{usual: path, retention: DefaultRetention, busyTimeout: DefaultBusyTimeout, open: make(chan struct{}, 1)}
	s.path.Store(&path)
	for _, o := range options {
		o(s)
	}
	return s
}

// Write adds the steps of each update to the history of its event, and makes the record where there is none,
// all in one transaction. It returns a *eventlog.RefusedError for events that the file can never keep: one with a
// malformed id, with a record that this version cannot read, or that the database refuses; the others are written.
func (s *Store) Write(ctx context.Context, updates []eventlog.Update) error {
	updates, malformed := eventlog.Combine(updates)
	if len(updates) == 0 {
		return eventlog.Refused(malformed)
	}
	refused, err := inTransaction(ctx, s, func(tx *transaction) (refused []eventlog.Refusal, _ error) {
		for _, u := range updates {
			err := tx.merge(u)
			switch {
			case isRefusal(err):
				refused = append(refused, eventlog.Refusal{ID: u.Event.ID, Err: err})
			case err != nil:
				return nil, fmt.Errorf("write event %s: %w", u.Event.ID, err)
			}
		}
		return refused, nil
	})
	if err != nil {
		return err
	}
	return eventlog.Refused(append(malformed, refused...))
}

// Event returns one event with its history, or eventlog.ErrNotFound.
func (s *Store) Event(ctx context.Context, id string) (eventlog.Record, error) {
	f, err := s.opened(ctx)
	if err != nil {
		return eventlog.Record{}, err
	}
	var document eventlog.Document
	err = f.readEvent.QueryRowContext(ctx, id).Scan(jsonColumn{&document})
	if errors.Is(err, sql.ErrNoRows) {
		err = eventlog.ErrNotFound
	}
	if err != nil {
		return eventlog.Record{}, fmt.Errorf("read event %.40q: %w", id, s.classify(err))
	}
	return document.Record(), nil
}

// UserEvents returns a page of a user's events, the highest epoch first. A limit below 1 is 1. It returns
// eventlog.ErrContinuation for a continuation that it did not make for this user.
func (s *Store) UserEvents(ctx context.Context, user string, limit int, continuation string) (eventlog.Page, error) {
	after := position{epoch: 1<<63 - 1}
	if continuation != "" {
		text, err := eventlog.Position(user, continuation)
		if err != nil {
			return eventlog.Page{}, err
		}
		if after, err = parsePosition(text); err != nil {
			return eventlog.Page{}, err
		}
	}
	f, err := s.opened(ctx)
	if err != nil {
		return eventlog.Page{}, err
	}
	page, err := f.page(ctx, user, max(limit, 1), after)
	if err != nil {
		return eventlog.Page{}, fmt.Errorf("read events of user %s: %w", user, s.classify(err))
	}
	return page, nil
}

// Apply makes e the last applied state of its user, and reports whether it did: only a higher epoch replaces. It returns
// eventlog.ErrLater where only a process of a later version can do it.
func (s *Store) Apply(ctx context.Context, e presence.Event) (applied bool, err error) {
	done, err := inTransaction(ctx, s, func(tx *transaction) (application, error) { return tx.apply(e) })
	if err == nil {
		err = done.later
	}
	if err != nil {
		return false, fmt.Errorf("apply event %s: %w", e.ID, err)
	}
	if done.repaired {
		s.repaired.Add(1)
	}
	return done.applied, nil
}

// Repaired counts the users records with junk in them that this process wrote anew with the next event of their user.
func (s *Store) Repaired() int64 { return s.repaired.Load() }

// User returns the last applied state of a user, and false for one of whom nothing is known. Its sessions
// have no deadline. What of the record cannot be read is left out.
func (s *Store) User(ctx context.Context, id string) (presence.User, bool, error) {
	f, err := s.opened(ctx)
	if err != nil {
		return presence.User{}, false, err
	}
	var text string
	err = f.readUser.QueryRowContext(ctx, id).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return presence.User{}, false, nil
	}
	if err != nil {
		return presence.User{}, false, fmt.Errorf("read user %s: %w", id, s.classify(err))
	}
	u := eventlog.ReadUser([]byte(text)).User()
	u.ID = id
	return u, true, nil
}

// Ping opens the file and reads from it.
func (s *Store) Ping(ctx context.Context) error {
	f, err := s.opened(ctx)
	if err != nil {
		return err
	}
	var n int
	if err := f.reader.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&n); err != nil {
		return fmt.Errorf("read %s: %w", *s.path.Load(), s.classify(err))
	}
	return nil
}

// Close commits what was accepted, ends the writer and closes the file. A second call does nothing.
func (s *Store) Close() error {
	s.open <- struct{}{}
	defer func() { <-s.open }()
	s.closed = true
	f := s.file
	s.file = nil
	if f == nil {
		return nil
	}
	return f.close()
}

// opened returns the open file. One caller opens it while the others wait.
func (s *Store) opened(ctx context.Context) (*file, error) {
	select {
	case s.open <- struct{}{}:
		defer func() { <-s.open }()
	case <-ctx.Done():
		return nil, fmt.Errorf("open %s: %w", s.usual, ctx.Err())
	}
	if s.closed {
		return nil, eventlog.ErrClosed
	}
	if s.file != nil {
		return s.file, nil
	}
	err := s.openAt(ctx, s.usual)
	if errors.Is(err, eventlog.ErrUnwritable) && s.fallback != "" {
		if at := s.openAt(ctx, s.fallback); at != nil {
			s.path.Store(&s.usual)
			err = errors.Join(err, at)
		} else {
			err = nil
		}
	}
	return s.file, err
}

// openAt opens the file at path.
func (s *Store) openAt(ctx context.Context, path string) error {
	s.path.Store(&path)
	f, err := s.openFile(ctx)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, s.classify(err))
	}
	s.file = f
	return nil
}

// Path returns the path of the file that is in use, and the one that it was meant to have.
func (s *Store) Path() (path, usual string) { return *s.path.Load(), s.usual }

// write runs do in a transaction of the writer. do may still run when ctx has ended and nobody waits for it any more,
// so it shares nothing with the caller.
func (s *Store) write(ctx context.Context, do func(*transaction) error) error {
	f, err := s.opened(ctx)
	if err != nil {
		return err
	}
	return f.submit(ctx, do)
}

// inTransaction runs do in a transaction of the writer, as write does, and returns its result once that is committed.
func inTransaction[T any](ctx context.Context, s *Store, do func(*transaction) (T, error)) (result T, err error) {
	var last atomic.Pointer[T]
	err = s.write(ctx, func(tx *transaction) error {
		got, err := do(tx)
		last.Store(&got)
		return err
	})
	if err != nil {
		return result, err
	}
	return *last.Load(), nil
}

// position is where a page ends: the epoch and id of its last event.
type position struct {
	epoch int64
	id    string
}

func (p position) String() string { return strconv.FormatInt(p.epoch, 10) + " " + p.id }

func parsePosition(text string) (position, error) {
	epoch, id, _ := strings.Cut(text, " ")
	n, err := strconv.ParseInt(epoch, 10, 64)
	if err != nil {
		return position{}, eventlog.ErrContinuation
	}
	return position{n, id}, nil
}

// jsonColumn scans a column of JSON text.
type jsonColumn struct{ into any }

func (c jsonColumn) Scan(column any) error {
	switch text := column.(type) {
	case []byte:
		return eventlog.Unmarshal(text, c.into)
	case string:
		return eventlog.Unmarshal([]byte(text), c.into)
	}
	return fmt.Errorf("column is %T, not JSON text", column)
}
