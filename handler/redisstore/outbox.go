package redisstore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

// relayGroup is the consumer group of the relays.
const relayGroup = "relay"

// Entry is one event in the outbox.
type Entry struct {
	// StreamID names the entry for Acknowledge.
	StreamID string
	// N counts the partition's events, from 1.
	N     int64
	Event presence.Event
	// Newer tells that the entry has a form that this version does not know: it has nothing but its StreamID. It stays
	// pending, and every other relay may take it over at once: a process of the version that wrote it does.
	Newer bool
	// packed is the entry as it is stored; the texts of Event are parts of it.
	packed string
	// fault says what of the entry could not be read and is left out, "" for nothing.
	fault string
}

// Size is how many bytes the entry has in the outbox.
func (e Entry) Size() int { return len(e.packed) }

// Outbox is the relay's side of the outbox streams. Consumer names this relay: the same name after a restart
// takes up at once what was left unacknowledged.
type Outbox struct {
	store       *Store
	consumer    string
	quarantined atomic.Int64
	// turn is held by the relay's call that uses the connection or waits for it: the relay's calls are many, and together
	// they take one part in the turns of the background.
	turn chan struct{}
}

// Outbox returns the outbox for one relay.
func (s *Store) Outbox(consumer string) *Outbox {
	return &Outbox{store: s, consumer: consumer, turn: make(chan struct{}, 1)}
}

// connect returns the shared client when it is the caller's turn, and what ends that.
func (o *Outbox) connect(ctx context.Context) (client redis.UniversalClient, done func(), err error) {
	if client, err = o.store.client.Connect(ctx); err != nil {
		return nil, nil, err
	}
	if !o.store.client.OneServer() {
		return client, func() {}, nil
	}
	if err := take(ctx, o.turn, "the relay's call before"); err != nil {
		return nil, nil, err
	}
	leave, err := o.store.client.Enter(ctx, redisconn.Background)
	if err != nil {
		<-o.turn
		return nil, nil, err
	}
	return client, func() {
		leave()
		<-o.turn
	}, nil
}

// Own returns entries that this relay read before and did not acknowledge, oldest first, after the one of the given
// StreamID; "" is the begin.
func (o *Outbox) Own(ctx context.Context, partition int, after string, limit int) ([]Entry, error) {
	return o.read(ctx, partition, cmp.Or(after, "0"), limit)
}

// Next returns entries that no relay has read yet, oldest first. It does not wait for any.
func (o *Outbox) Next(ctx context.Context, partition, limit int) ([]Entry, error) {
	return o.read(ctx, partition, ">", limit)
}

// read returns entries, none only when there are none: junk does not count.
func (o *Outbox) read(ctx context.Context, p int, from string, limit int) ([]Entry, error) {
	for {
		messages, err := o.messages(ctx, p, from, limit)
		if err != nil || len(messages) == 0 {
			return nil, err
		}
		if entries, err := o.entries(ctx, p, messages); err != nil || len(entries) > 0 {
			return entries, err
		}
	}
}

func (o *Outbox) messages(ctx context.Context, p int, from string, limit int) (messages []redis.XMessage, err error) {
	client, done, err := o.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	stream := o.store.keys.outbox(p)
	args := &redis.XReadGroupArgs{Group: relayGroup, Consumer: o.consumer, Streams: []string{stream, from}, Count: int64(limit), Block: -1}
	streams, err := client.XReadGroup(ctx, args).Result()
	if redis.HasErrorPrefix(err, "NOGROUP") {
		// Created at 0: what was written before there was a relay counts too.
		if err := client.XGroupCreateMkStream(ctx, stream, relayGroup, "0").Err(); err != nil && !redis.HasErrorPrefix(err, "BUSYGROUP") {
			return nil, redisconn.Unavailable(fmt.Errorf("create the relay's group: %w", err))
		}
		streams, err = client.XReadGroup(ctx, args).Result()
	}
	switch {
	case errors.Is(err, redis.Nil):
		return nil, nil
	case err != nil:
		return nil, redisconn.Unavailable(fmt.Errorf("read the outbox of partition %d: %w", p, err))
	}
	for _, s := range streams {
		messages = append(messages, s.Messages...)
	}
	return messages, nil
}

// TakeOver takes entries that a relay has not acknowledged for at least idle, which is at least a millisecond: it is gone,
// or stuck. Those that skip names by their StreamID are left alone; nil skips none. A pass over all begins with from "" and goes on with
// next until that is "": each call looks at a part of them.
func (o *Outbox) TakeOver(ctx context.Context, partition int, idle time.Duration, skip func(id string) bool, from string, limit int) (entries []Entry, next string, err error) {
	ids, next, err := o.idle(ctx, partition, idle, from, limit)
	if err != nil {
		return nil, from, err
	}
	if skip != nil {
		ids = slices.DeleteFunc(ids, skip)
	}
	messages, err := o.claim(ctx, partition, idle, ids)
	if err == nil {
		entries, err = o.entries(ctx, partition, messages)
	}
	if err != nil {
		return nil, from, err
	}
	return entries, next, nil
}

// idle lists entries that were read at least so long ago and not acknowledged since, of all relays.
func (o *Outbox) idle(ctx context.Context, p int, idle time.Duration, from string, limit int) (ids []string, next string, err error) {
	client, done, err := o.connect(ctx)
	if err != nil {
		return nil, "", err
	}
	defer done()
	pending, err := client.XPendingExt(ctx, &redis.XPendingExtArgs{
		Stream: o.store.keys.outbox(p), Group: relayGroup, Idle: idle, Start: cmp.Or(from, "-"), End: "+", Count: int64(limit),
	}).Result()
	switch {
	case redis.HasErrorPrefix(err, "NOGROUP") || errors.Is(err, redis.Nil):
		return nil, "", nil // no relay has read anything yet
	case err != nil:
		return nil, "", redisconn.Unavailable(fmt.Errorf("look for pending entries of partition %d: %w", p, err))
	}
	for _, e := range pending {
		ids = append(ids, e.ID)
	}
	if len(ids) == limit {
		next = after(ids[limit-1])
	}
	return ids, next, nil
}

// after is the least StreamID above id.
func after(id string) string {
	ms, seq, _ := strings.Cut(id, "-")
	n, err := strconv.ParseUint(seq, 10, 64)
	if err != nil || n == math.MaxUint64 {
		return id // looked at twice: no harm
	}
	return ms + "-" + strconv.FormatUint(n+1, 10)
}

// claim takes entries that are still idle and reads them. It reads by StreamID: a server before 7.0 answers a claim of
// an entry that was deleted with nothing in its place, which cannot be told from others.
func (o *Outbox) claim(ctx context.Context, p int, idle time.Duration, ids []string) ([]redis.XMessage, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	client, done, err := o.connect(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	stream := o.store.keys.outbox(p)
	ours, err := client.XClaimJustID(ctx, &redis.XClaimArgs{Stream: stream, Group: relayGroup, Consumer: o.consumer, MinIdle: idle, Messages: ids}).Result()
	if err != nil {
		return nil, redisconn.Unavailable(fmt.Errorf("take over entries of partition %d: %w", p, err))
	}
	if len(ours) == 0 {
		return nil, nil
	}
	pipe := client.Pipeline()
	reads := make([]*redis.XMessageSliceCmd, len(ours))
	for i, id := range ours {
		reads[i] = pipe.XRange(ctx, stream, id, id)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return nil, redisconn.Unavailable(fmt.Errorf("read entries of partition %d that were taken over: %w", p, err))
	}
	messages := make([]redis.XMessage, len(ours))
	for i, read := range reads {
		messages[i] = redis.XMessage{ID: ours[i]} // without values: it was deleted
		for _, m := range read.Val() {
			messages[i] = m
		}
	}
	return messages, nil
}

// keepAtOnce bounds the entries that one command of setIdle claims, so that none takes long.
const keepAtOnce = 500

// Keep tells the other relays that this one still has entries in hand: they do not take them over before they are idle
// again.
func (o *Outbox) Keep(ctx context.Context, partition int, ids []string) error {
	return o.setIdle(ctx, partition, ids, 0)
}

// longIdle is idle enough for every relay to take an entry over at once.
const longIdle = time.Hour

func (o *Outbox) setIdle(ctx context.Context, p int, ids []string, idle time.Duration) error {
	for some := range slices.Chunk(ids, keepAtOnce) {
		client, done, err := o.connect(ctx)
		if err != nil {
			return err
		}
		args := []any{"XCLAIM", o.store.keys.outbox(p), relayGroup, o.consumer, 0}
		for _, id := range some {
			args = append(args, id)
		}
		err = client.Do(ctx, append(args, "IDLE", idle.Milliseconds(), "JUSTID")...).Err()
		done()
		if err != nil && !errors.Is(err, redis.Nil) {
			return redisconn.Unavailable(fmt.Errorf("set how long entries of partition %d are pending: %w", p, err))
		}
	}
	return nil
}

// Acknowledge removes entries that were sent and logged, in one call.
func (o *Outbox) Acknowledge(ctx context.Context, partition int, entries []Entry) error {
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = e.StreamID
	}
	return o.remove(ctx, partition, ids)
}

func (o *Outbox) remove(ctx context.Context, p int, ids []string) error {
	client, done, err := o.connect(ctx)
	if err != nil {
		return err
	}
	defer done()
	stream := o.store.keys.outbox(p)
	_, err = client.TxPipelined(ctx, func(tx redis.Pipeliner) error {
		tx.XAck(ctx, stream, relayGroup, ids...)
		tx.XDel(ctx, stream, ids...)
		return nil
	})
	if err != nil {
		return redisconn.Unavailable(fmt.Errorf("acknowledge %d entries of partition %d: %w", len(ids), p, err))
	}
	return nil
}

// SetAside keeps a copy of an entry in the quarantine stream, with the reason. The entry itself stays.
func (o *Outbox) SetAside(ctx context.Context, partition int, e Entry, reason string) error {
	what := "outbox entry " + e.StreamID
	if e.Event.ID != "" {
		what += ", event " + e.Event.ID
	}
	return o.quarantine(ctx, partition, what+": "+reason, e.packed)
}

// Quarantined counts the entries that this process put in the quarantine stream, in whole or in part.
func (o *Outbox) Quarantined() int64 { return o.quarantined.Load() }

// entries reads messages. One that nobody can read goes to the quarantine stream, so that it holds up no other; one that
// a later version can read is handed over to others; one that was deleted is forgotten.
func (o *Outbox) entries(ctx context.Context, p int, messages []redis.XMessage) ([]Entry, error) {
	entries := make([]Entry, 0, len(messages))
	var newer, gone []string
	for _, m := range messages {
		if m.Values == nil {
			gone = append(gone, m.ID)
			continue
		}
		packed, _ := m.Values["e"].(string)
		e, err := unpack(packed)
		e.StreamID, e.packed = m.ID, packed
		fault := e.fault
		switch {
		case errors.Is(err, errNewer):
			e.Newer = true
			newer = append(newer, m.ID)
		case err != nil:
			fault = err.Error()
			gone = append(gone, m.ID)
			if content, err := json.Marshal(m.Values); err == nil {
				e.packed = string(content) // whatever fields it has
			}
		}
		if fault != "" {
			if err := o.SetAside(ctx, p, e, fault); err != nil {
				return nil, err
			}
		}
		if err == nil || e.Newer {
			entries = append(entries, e)
		}
	}
	if len(gone) > 0 {
		if err := o.remove(ctx, p, gone); err != nil {
			return nil, err
		}
	}
	return entries, o.setIdle(ctx, p, newer, longIdle)
}

func (o *Outbox) quarantine(ctx context.Context, p int, what, content string) error {
	client, done, err := o.connect(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := client.XAdd(ctx, &redis.XAddArgs{
		Stream: o.store.keys.in(p, "quarantine"), MaxLen: 1000, Approx: true,
		Values: []any{"key", o.store.keys.outbox(p), "what", what, "content", content},
	}).Err(); err != nil {
		return redisconn.Unavailable(fmt.Errorf("put an outbox entry in quarantine: %w", err))
	}
	o.quarantined.Add(1)
	return nil
}

// Lag tells how old the oldest entry of all partitions' outboxes is, zero when they are empty.
func (o *Outbox) Lag(ctx context.Context, now time.Time) (time.Duration, error) {
	client, done, err := o.connect(ctx)
	if err != nil {
		return 0, err
	}
	defer done()
	pipe := client.Pipeline()
	first := make([]*redis.XMessageSliceCmd, o.store.Partitions())
	for p := range first {
		first[p] = pipe.XRangeN(ctx, o.store.keys.outbox(p), "-", "+", 1)
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return 0, redisconn.Unavailable(fmt.Errorf("read the oldest entries: %w", err))
	}
	var oldest time.Duration
	for _, cmd := range first {
		for _, m := range cmd.Val() {
			ms, _, _ := strings.Cut(m.ID, "-")
			if at, err := strconv.ParseInt(ms, 10, 64); err == nil {
				oldest = max(oldest, now.Sub(time.UnixMilli(at)))
			}
		}
	}
	return oldest, nil
}
