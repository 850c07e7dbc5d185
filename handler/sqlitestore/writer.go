package sqlitestore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

const (
	// maxGroup bounds the calls of one transaction.
	maxGroup = 256
	// maxPruned bounds the old events that one transaction forgets, so that none takes long.
	maxPruned = 500
)

// job is one call that waits for its transaction.
type job struct {
	ctx context.Context
	// do may run twice: in the transaction of its group and, where that fails, in one of its own.
	do   func(*transaction) error
	done chan error
}

// writer is the one connection that writes, and the goroutine that owns it.
type writer struct {
	db        *sql.DB
	retention time.Duration
	classify  func(error) error

	readEvent, insertEvent, updateEvent, prune *sql.Stmt
	readUser, writeUser                        *sql.Stmt
	readETag, writeProfile, deleteProfile      *sql.Stmt

	jobs    chan *job
	stop    chan struct{} // closed by Close
	stopped chan struct{} // closed by the goroutine
}

func openWriter(ctx context.Context, source string, retention time.Duration, classify func(error) error) (*writer, error) {
	db, err := sql.Open("sqlite", source)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1)
	w := &writer{
		db: db, retention: retention, classify: classify,
		jobs: make(chan *job, maxGroup), stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	if err := w.prepare(ctx); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	go w.run()
	return w, nil
}

func (w *writer) prepare(ctx context.Context) (err error) {
	if err := prepareSchema(ctx, w.db); err != nil {
		return err
	}
	for statement, query := range map[**sql.Stmt]string{
		&w.readEvent:   "SELECT rowid, document FROM events WHERE id = ?",
		&w.insertEvent: "INSERT INTO events (id, user, epoch, detected_at, document) VALUES (?, ?, ?, ?, ?)",
		&w.updateEvent: "UPDATE events SET epoch = ?, detected_at = ?, document = ? WHERE rowid = ?",
		&w.prune: `DELETE FROM events WHERE rowid IN
			(SELECT rowid FROM events WHERE detected_at < ? ORDER BY detected_at LIMIT ?)`,
		&w.readUser:      "SELECT document FROM users WHERE id = ?",
		&w.writeUser:     "INSERT INTO users (id, document) VALUES (?, ?) ON CONFLICT DO UPDATE SET document = excluded.document",
		&w.readETag:      "SELECT etag FROM profiles WHERE id = ?",
		&w.writeProfile:  "INSERT INTO profiles (id, etag, document) VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET etag = ?2, document = ?3",
		&w.deleteProfile: "DELETE FROM profiles WHERE id = ?",
	} {
		if *statement, err = w.db.PrepareContext(ctx, query); err != nil {
			return err
		}
	}
	return nil
}

// submit hands do to the goroutine and waits until its transaction is committed. When ctx ends first, do may
// still be committed later.
func (w *writer) submit(ctx context.Context, do func(*transaction) error) error {
	j := &job{ctx: ctx, do: do, done: make(chan error, 1)}
	select {
	case w.jobs <- j:
	case <-ctx.Done():
		return fmt.Errorf("wait for the writer: %w", ctx.Err())
	case <-w.stop:
		return eventlog.ErrClosed
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the commit: %w", ctx.Err())
	case <-w.stopped:
	}
	select {
	case err := <-j.done:
		return err
	default: // accepted when the goroutine had already gone
		return eventlog.ErrClosed
	}
}

// Close commits what was accepted, and waits for the goroutine.
func (w *writer) Close() error {
	close(w.stop)
	<-w.stopped
	return w.db.Close()
}

func (w *writer) run() {
	defer close(w.stopped)
	for {
		select {
		case j := <-w.jobs:
			w.commitGroup(w.group(j))
		case <-w.stop:
			for {
				select {
				case j := <-w.jobs:
					w.commitGroup(w.group(j))
				default:
					return
				}
			}
		}
	}
}

// group returns first and the calls that wait behind it. While a transaction runs the next group gathers, so
// the groups grow with the load and a lone call never waits.
func (w *writer) group(first *job) []*job {
	group := []*job{first}
	for len(group) < maxGroup {
		select {
		case j := <-w.jobs:
			group = append(group, j)
		default:
			return group
		}
	}
	return group
}

// commitGroup runs the group in one transaction and answers each call. When that fails, every call gets a
// transaction of its own, so that one bad call cannot fail the others.
func (w *writer) commitGroup(group []*job) {
	waiting := group[:0]
	for _, j := range group {
		if err := j.ctx.Err(); err != nil {
			j.done <- err
			continue
		}
		waiting = append(waiting, j)
	}
	if len(waiting) == 0 {
		return
	}
	err := w.commit(waiting)
	if err == nil || len(waiting) == 1 {
		for _, j := range waiting {
			j.done <- err
		}
		return
	}
	for _, j := range waiting {
		j.done <- w.commit([]*job{j})
	}
}

// commit waits for at most the busy timeout, when another process writes. Its statements take no context: a
// transaction is short, and one caller's end must not interrupt that of the others.
func (w *writer) commit(group []*job) (err error) {
	tx, err := w.db.Begin()
	if err != nil {
		return fmt.Errorf("begin a transaction: %w", w.classify(err))
	}
	defer tx.Rollback() //nolint:errcheck // after a commit there is nothing to roll back
	t := &transaction{w: w, tx: tx}
	for _, j := range group {
		if err := j.do(t); err != nil {
			return w.classify(err)
		}
	}
	if w.retention > 0 {
		if _, err := t.exec(w.prune, time.Now().Add(-w.retention).UnixMilli(), maxPruned); err != nil {
			return fmt.Errorf("forget old events: %w", w.classify(err))
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", w.classify(err))
	}
	return nil
}

// transaction is what a call may do inside the writer's transaction.
type transaction struct {
	w  *writer
	tx *sql.Tx
}

func (t *transaction) exec(statement *sql.Stmt, args ...any) (sql.Result, error) {
	return t.tx.Stmt(statement).Exec(args...)
}

func (t *transaction) row(statement *sql.Stmt, args ...any) *sql.Row {
	return t.tx.Stmt(statement).QueryRow(args...)
}

// unreadable is the fault of a stored document that this version cannot read.
type unreadable struct{ err error }

func (u unreadable) Error() string {
	return "what is stored cannot be read by this version: " + u.err.Error()
}
func (u unreadable) Unwrap() error { return u.err }

// ErrorKind tells that the same write can never succeed.
func (u unreadable) ErrorKind() fault.Kind { return fault.Invalid }

// merge adds an update to the record of its event. Members of it that this version does not know stay.
func (t *transaction) merge(u eventlog.Update) error {
	var (
		rowID  int64
		stored string
	)
	err := t.row(t.w.readEvent, u.Event.ID).Scan(&rowID, &stored)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return t.insert(u)
	case err != nil:
		return err
	}
	var document eventlog.Document
	if err := eventlog.Unmarshal([]byte(stored), &document); err != nil {
		return unreadable{err}
	}
	next, changed, err := document.Merge(u)
	if err != nil || !changed {
		return err
	}
	text, err := eventlog.Overlay([]byte(stored), document, next)
	if err != nil {
		return unreadable{err}
	}
	_, err = t.exec(t.w.updateEvent, next.Epoch, next.DetectedAt.UnixMilli(), string(text), rowID)
	return err
}

// insert makes the record of an update that brings an event.
func (t *transaction) insert(u eventlog.Update) error {
	if u.Event.Type == "" {
		return nil
	}
	record, _ := eventlog.Record{Event: u.Event}.Merge(u)
	document, err := eventlog.NewDocument(record)
	if err != nil {
		return err
	}
	text, err := eventlog.Marshal(document)
	if err != nil {
		// Only what the client wrote can be what no JSON can hold.
		document = document.Reduced(1, err.Error())
		if text, err = eventlog.Marshal(document); err != nil {
			return err
		}
	}
	_, err = t.exec(t.w.insertEvent, document.ID, document.User, document.Epoch, document.DetectedAt.UnixMilli(), string(text))
	return err
}

// application is what became of an event at the users record.
type application struct {
	applied  bool
	repaired bool  // there was junk in the record
	later    error // eventlog.ErrLater; it ends no transaction
}

// apply makes e the state of its user when no newer one is there. Members of the record that this version does not know
// stay, and junk in the place of those that it knows goes.
func (t *transaction) apply(e presence.Event) (application, error) {
	old := eventlog.StoredUser{Text: []byte("{}")}
	var stored string
	err := t.row(t.w.readUser, e.User).Scan(&stored)
	switch {
	case err == nil:
		old = eventlog.ReadUser([]byte(stored))
	case !errors.Is(err, sql.ErrNoRows):
		return application{}, err
	}
	next, applied, later := old.Apply(e)
	if !applied {
		return application{later: later}, nil
	}
	text, err := eventlog.Overlay(old.Text, old.UserDocument, next)
	if err != nil {
		return application{}, err
	}
	_, err = t.exec(t.w.writeUser, next.ID, string(text))
	return application{applied: true, repaired: old.Junk != nil}, err
}
