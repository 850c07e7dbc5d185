package localhost

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Defaults of a queue, those of the project's queues on Service Bus.
const (
	defaultLockDuration     = 5 * time.Minute
	defaultMaxDeliveryCount = 10
	duplicateWindow         = 10 * time.Minute
)

// deadLetterSuffix makes the name of a queue's dead-letter queue.
const deadLetterSuffix = "/$deadletterqueue"

var (
	errDataInUse = errors.New("the data folder is in use by another local host")
	errQueueName = errors.New("a queue name has 1 to 260 letters, digits, dots, hyphens and underscores, and starts with a letter or a digit")
	errLockLost  = errors.New("the lock has expired")
)

var queueName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,259}$`)

func checkQueueName(name string) error {
	if !queueName.MatchString(strings.TrimSuffix(name, deadLetterSuffix)) {
		return errQueueName
	}
	return nil
}

// broker keeps queues in a SQLite file: peek-lock, delivery count, dead letter and duplicate detection. A queue
// is there once something was sent to it. Only one process at a time can open the file.
type broker struct {
	db               *sql.DB
	lockDuration     time.Duration
	maxDeliveryCount int
	now              func() time.Time

	mu    sync.Mutex
	wakes map[string]chan struct{} // by queue; closed when messages may have become available
}

// message is a message in a queue.
type message struct {
	Sequence      int64
	ID            string
	Subject       string
	SessionID     string
	ContentType   string
	Properties    json.RawMessage // an object of scalars, nil when there are none
	Body          []byte
	EnqueuedAt    time.Time
	DeliveryCount int // deliveries so far, one that is going on included
	// DeadLetterReason says why the message is in a dead-letter queue, "" elsewhere.
	DeadLetterReason      string
	DeadLetterDescription string
}

// properties returns the application properties, with the reason of a dead letter among them.
func (m message) properties() any {
	if m.DeadLetterReason == "" {
		if m.Properties == nil {
			return struct{}{}
		}
		return m.Properties
	}
	all := map[string]json.RawMessage{}
	if m.Properties != nil {
		_ = json.Unmarshal(m.Properties, &all) // it was checked when it came in
	}
	all["DeadLetterReason"] = marshal(m.DeadLetterReason)
	all["DeadLetterErrorDescription"] = marshal(m.DeadLetterDescription)
	return all
}

// delivery is a batch of messages under one lock.
type delivery struct {
	queue    string
	token    string
	messages []message // oldest first
}

// queueCounts says how many messages a queue has: ready to be received, locked, and in its dead-letter queue.
type queueCounts struct{ Active, Locked, DeadLetter int }

const brokerSchema = `
CREATE TABLE IF NOT EXISTS messages (
	seq           INTEGER PRIMARY KEY AUTOINCREMENT,
	queue         TEXT NOT NULL,
	id            TEXT NOT NULL,
	subject       TEXT NOT NULL,
	session_id    TEXT NOT NULL,
	content_type  TEXT NOT NULL,
	properties    BLOB,
	body          BLOB NOT NULL,
	enqueued_at   INTEGER NOT NULL,            -- Unix milliseconds
	deliveries    INTEGER NOT NULL DEFAULT 0,
	lock_token    TEXT NOT NULL DEFAULT '',
	locked_until  INTEGER NOT NULL DEFAULT 0,  -- Unix milliseconds
	dead_reason   TEXT NOT NULL DEFAULT '',
	dead_detail   TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS messages_queue ON messages (queue, seq);
CREATE INDEX IF NOT EXISTS messages_deliveries ON messages (queue, deliveries);
CREATE INDEX IF NOT EXISTS messages_lock ON messages (lock_token) WHERE lock_token <> '';
CREATE TABLE IF NOT EXISTS recent_ids (
	queue TEXT NOT NULL,
	id    TEXT NOT NULL,
	at    INTEGER NOT NULL,                    -- Unix milliseconds
	PRIMARY KEY (queue, id)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS recent_ids_at ON recent_ids (at);
CREATE TABLE IF NOT EXISTS queues (name TEXT PRIMARY KEY) WITHOUT ROWID;
INSERT OR IGNORE INTO queues SELECT DISTINCT queue FROM messages WHERE queue NOT LIKE '%/%'; -- of a file without them`

const messageColumns = `seq, id, subject, session_id, content_type, properties, body, enqueued_at, deliveries, dead_reason, dead_detail`

// openBroker opens the file at path and releases the locks of a host that was killed. It returns errDataInUse
// while another process has the file open. maxDeliveryCount and lockDuration are at least 1.
func openBroker(ctx context.Context, path string, lockDuration time.Duration, maxDeliveryCount int) (*broker, error) {
	// One connection that never lets go of the file: the lock also tells that the data folder is in use.
	file := url.URL{Scheme: "file", Path: path} // escaped: a question mark in a path would end it
	db, err := sql.Open("sqlite", file.String()+"?_pragma=locking_mode(EXCLUSIVE)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)&_txlock=immediate")
	if err != nil {
		return nil, fmt.Errorf("open queues: %w", err)
	}
	db.SetMaxOpenConns(1)
	b := &broker{db: db, lockDuration: lockDuration, maxDeliveryCount: maxDeliveryCount, now: time.Now, wakes: map[string]chan struct{}{}}
	err = b.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, brokerSchema); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, `UPDATE messages SET lock_token = '', locked_until = 0 WHERE lock_token <> ''`)
		return err
	})
	if err != nil {
		_ = db.Close()
		var busy *sqlite.Error
		if errors.As(err, &busy) && busy.Code()&0xff == sqlite3.SQLITE_BUSY {
			return nil, fmt.Errorf("open queues: %w", errDataInUse)
		}
		return nil, fmt.Errorf("open queues: %w", err)
	}
	return b, nil
}

func (b *broker) close() error { return b.db.Close() }

// enqueue appends messages to a queue, all or none. Those whose id came within the last ten minutes are dropped. One
// whose EnqueuedAt is still to come cannot be received before; until then it counts as locked.
func (b *broker) enqueue(ctx context.Context, queue string, messages []message) error {
	now := b.now()
	err := b.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT OR IGNORE INTO queues (name) VALUES (?)`, queue); err != nil {
			return err
		}
		forgotten := now.Add(-duplicateWindow).UnixMilli()
		if _, err := tx.ExecContext(ctx, `DELETE FROM recent_ids WHERE at <= ?`, forgotten); err != nil {
			return err
		}
		for _, m := range messages {
			result, err := tx.ExecContext(ctx, `INSERT INTO recent_ids (queue, id, at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING`,
				queue, m.ID, now.UnixMilli())
			if err != nil {
				return err
			}
			if n, err := result.RowsAffected(); err != nil || n == 0 {
				if err != nil {
					return err
				}
				continue
			}
			enqueuedAt, lockedUntil := now.UnixMilli(), int64(0)
			if m.EnqueuedAt.After(now) {
				enqueuedAt, lockedUntil = m.EnqueuedAt.UnixMilli(), m.EnqueuedAt.UnixMilli()
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO messages (queue, id, subject, session_id, content_type, properties, body, enqueued_at, locked_until)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`, queue, m.ID, m.Subject, m.SessionID, m.ContentType, []byte(m.Properties),
				append([]byte{}, m.Body...), enqueuedAt, lockedUntil)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("enqueue into %s: %w", queue, err)
	}
	b.wake(queue)
	return nil
}

// receive locks the oldest messages of a queue, up to limit, and waits while there are none.
func (b *broker) receive(ctx context.Context, queue string, limit int) (delivery, error) {
	for {
		woken := b.wakeOf(queue) // before looking, so that nothing is missed
		d, lockedUntil, err := b.lock(ctx, queue, limit)
		if err != nil {
			return delivery{}, fmt.Errorf("receive from %s: %w", queue, err)
		}
		if len(d.messages) > 0 {
			return d, nil
		}
		var expiry <-chan time.Time
		if !lockedUntil.IsZero() {
			timer := time.NewTimer(lockedUntil.Sub(b.now()))
			defer timer.Stop()
			expiry = timer.C
		}
		select {
		case <-woken:
		case <-expiry:
		case <-ctx.Done():
			return delivery{}, ctx.Err()
		}
	}
}

// lock is one try of receive. When there is nothing, lockedUntil is when the next lock of others ends.
func (b *broker) lock(ctx context.Context, queue string, limit int) (d delivery, lockedUntil time.Time, err error) {
	d = delivery{queue: queue, token: uuid.NewString()}
	now := b.now()
	buried := int64(0)
	err = b.inTx(ctx, func(tx *sql.Tx) error {
		if buried, err = b.buryDead(ctx, tx, queue, now); err != nil {
			return err
		}
		rows, err := tx.QueryContext(ctx, `UPDATE messages SET lock_token = ?, locked_until = ?, deliveries = deliveries + 1
			WHERE seq IN (SELECT seq FROM messages WHERE queue = ? AND locked_until <= ? ORDER BY seq LIMIT ?)
			RETURNING `+messageColumns,
			d.token, now.Add(b.lockDuration).UnixMilli(), queue, now.UnixMilli(), limit)
		if err != nil {
			return err
		}
		if d.messages, err = scanMessages(rows); err != nil || len(d.messages) > 0 {
			return err
		}
		var next sql.NullInt64
		err = tx.QueryRowContext(ctx, `SELECT min(locked_until) FROM messages WHERE queue = ?`, queue).Scan(&next)
		if next.Valid {
			lockedUntil = time.UnixMilli(next.Int64)
		}
		return err
	})
	if buried > 0 && err == nil {
		b.wake(queue + deadLetterSuffix)
	}
	// RETURNING has no order.
	slices.SortFunc(d.messages, func(a, b message) int { return int(a.Sequence - b.Sequence) })
	return d, lockedUntil, err
}

// complete removes the messages of a delivery. It returns errLockLost when the lock was too short.
func (b *broker) complete(ctx context.Context, d delivery) error {
	result, err := b.db.ExecContext(ctx, `DELETE FROM messages WHERE lock_token = ? AND locked_until > ?`, d.token, b.now().UnixMilli())
	if err != nil {
		return fmt.Errorf("complete %d messages of %s: %w", len(d.messages), d.queue, err)
	}
	if n, err := result.RowsAffected(); err == nil && n < int64(len(d.messages)) {
		return fmt.Errorf("complete %d messages of %s: %w", len(d.messages), d.queue, errLockLost)
	}
	return nil
}

// abandon gives the messages of a delivery back, at once. Those that were delivered too often become dead
// letters. A delivery that never reached the handler does not count.
func (b *broker) abandon(ctx context.Context, d delivery, delivered bool) error {
	count := 0
	if !delivered {
		count = 1
	}
	buried := int64(0)
	err := b.inTx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `UPDATE messages SET lock_token = '', locked_until = 0, deliveries = deliveries - ?
			WHERE lock_token = ?`, count, d.token)
		if err == nil {
			buried, err = b.buryDead(ctx, tx, d.queue, b.now())
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("abandon %d messages of %s: %w", len(d.messages), d.queue, err)
	}
	b.wake(d.queue)
	if buried > 0 {
		b.wake(d.queue + deadLetterSuffix)
	}
	return nil
}

// buryDead moves the unlocked messages of a queue that were delivered too often to its dead-letter queue.
func (b *broker) buryDead(ctx context.Context, tx *sql.Tx, queue string, now time.Time) (int64, error) {
	if strings.HasSuffix(queue, deadLetterSuffix) {
		return 0, nil // nothing leaves a dead-letter queue but by being completed
	}
	result, err := tx.ExecContext(ctx, `UPDATE messages SET queue = queue || ?, lock_token = '', locked_until = 0,
		dead_reason = 'MaxDeliveryCountExceeded', dead_detail = ?
		WHERE queue = ? AND deliveries >= ? AND locked_until <= ?`, deadLetterSuffix,
		fmt.Sprintf("Message could not be consumed after %d delivery attempts.", b.maxDeliveryCount),
		queue, b.maxDeliveryCount, now.UnixMilli())
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

// queues returns the names of all queues that were ever sent to.
func (b *broker) queues(ctx context.Context) (names []string, err error) {
	rows, err := b.db.QueryContext(ctx, `SELECT name FROM queues`)
	if err != nil {
		return nil, fmt.Errorf("list queues: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("list queues: %w", err)
		}
		names = append(names, name)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list queues: %w", err)
	}
	return names, nil
}

// counts counts the messages of a queue.
func (b *broker) counts(ctx context.Context, queue string) (c queueCounts, err error) {
	err = b.db.QueryRowContext(ctx, `SELECT
		count(*) FILTER (WHERE queue = ?1 AND locked_until <= ?2), count(*) FILTER (WHERE queue = ?1 AND locked_until > ?2),
		count(*) FILTER (WHERE queue = ?3) FROM messages WHERE queue IN (?1, ?3)`,
		queue, b.now().UnixMilli(), queue+deadLetterSuffix).Scan(&c.Active, &c.Locked, &c.DeadLetter)
	if err != nil {
		return c, fmt.Errorf("count messages of %s: %w", queue, err)
	}
	return c, nil
}

// peek returns the oldest messages of a queue, up to limit, without locking them.
func (b *broker) peek(ctx context.Context, queue string, limit int) ([]message, error) {
	rows, err := b.db.QueryContext(ctx, `SELECT `+messageColumns+` FROM messages WHERE queue = ? ORDER BY seq LIMIT ?`, queue, limit)
	if err != nil {
		return nil, fmt.Errorf("peek into %s: %w", queue, err)
	}
	messages, err := scanMessages(rows)
	if err != nil {
		return nil, fmt.Errorf("peek into %s: %w", queue, err)
	}
	return messages, nil
}

func scanMessages(rows *sql.Rows) (messages []message, err error) {
	defer rows.Close()
	for rows.Next() {
		var m message
		var properties []byte
		var enqueuedAt int64
		err := rows.Scan(&m.Sequence, &m.ID, &m.Subject, &m.SessionID, &m.ContentType, &properties, &m.Body, &enqueuedAt,
			&m.DeliveryCount, &m.DeadLetterReason, &m.DeadLetterDescription)
		if err != nil {
			return nil, err
		}
		if len(properties) > 0 {
			m.Properties = properties
		}
		m.EnqueuedAt = time.UnixMilli(enqueuedAt)
		messages = append(messages, m)
	}
	return messages, rows.Err()
}

func (b *broker) inTx(ctx context.Context, do func(*sql.Tx) error) error {
	tx, err := b.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		_ = tx.Rollback()
		return err
	}
	return tx.Commit()
}

// wakeOf returns a channel that is closed when messages of a queue may have become available.
func (b *broker) wakeOf(queue string) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.wakes[queue] == nil {
		b.wakes[queue] = make(chan struct{})
	}
	return b.wakes[queue]
}

func (b *broker) wake(queue string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.wakes[queue]; c != nil {
		close(c)
		delete(b.wakes, queue)
	}
}

// scalars reports whether every value of the object is a string, a number or a boolean.
func scalars(properties map[string]json.RawMessage) bool {
	for value := range maps.Values(properties) {
		if value[0] == '{' || value[0] == '[' || value[0] == 'n' {
			return false
		}
	}
	return true
}
