package redisstore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
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
}

// Outbox is the relay's side of the outbox streams. Consumer names this relay: the same name after a restart
// takes up at once what was left unacknowledged.
type Outbox struct {
	store    *Store
	consumer string
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
	if client, err = o.store.client.connect(ctx); err != nil {
		return nil, nil, err
	}
	if !o.store.client.oneServer() {
		return client, func() {}, nil
	}
	if err := take(ctx, o.turn, "the relay's call before"); err != nil {
		return nil, nil, err
	}
	leave, err := o.store.door.enter(ctx, background)
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
			return nil, unavailable(fmt.Errorf("create the relay's group: %w", err))
		}
		streams, err = client.XReadGroup(ctx, args).Result()
	}
	switch {
	case errors.Is(err, redis.Nil):
		return nil, nil
	case err != nil:
		return nil, unavailable(fmt.Errorf("read the outbox of partition %d: %w", p, err))
	}
	for _, s := range streams {
		messages = append(messages, s.Messages...)
	}
	return messages, nil
}

// TakeOver takes entries that a relay has not acknowledged for at least idle: it is gone, or stuck. A pass over all
// begins with from "" and goes on with next until that is "": each call looks at a part of them.
func (o *Outbox) TakeOver(ctx context.Context, partition int, idle time.Duration, from string, limit int) (entries []Entry, next string, err error) {
	client, done, err := o.connect(ctx)
	if err != nil {
		return nil, from, err
	}
	messages, next, err := client.XAutoClaim(ctx, &redis.XAutoClaimArgs{
		Stream: o.store.keys.outbox(partition), Group: relayGroup, Consumer: o.consumer, MinIdle: idle, Start: cmp.Or(from, "0-0"), Count: int64(limit),
	}).Result()
	done()
	switch {
	case redis.HasErrorPrefix(err, "NOGROUP") || errors.Is(err, redis.Nil):
		return nil, "", nil // no relay has read anything yet
	case err != nil:
		return nil, from, unavailable(fmt.Errorf("take over entries of partition %d: %w", partition, err))
	case next == "0-0":
		next = ""
	}
	entries, err = o.entries(ctx, partition, messages)
	return entries, next, err
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
		return unavailable(fmt.Errorf("acknowledge %d entries of partition %d: %w", len(ids), p, err))
	}
	return nil
}

// entries reads messages. One that cannot be read goes to the quarantine stream, so that it holds up no other.
func (o *Outbox) entries(ctx context.Context, p int, messages []redis.XMessage) ([]Entry, error) {
	entries := make([]Entry, 0, len(messages))
	for _, m := range messages {
		packed, _ := m.Values["e"].(string)
		e, err := unpack(packed)
		if err == nil {
			e.StreamID = m.ID
			entries = append(entries, e)
			continue
		}
		if err := o.quarantine(ctx, p, m, err); err != nil {
			return nil, err
		}
	}
	return entries, nil
}

func (o *Outbox) quarantine(ctx context.Context, p int, m redis.XMessage, cause error) error {
	client, done, err := o.connect(ctx)
	if err != nil {
		return err
	}
	content, err := json.Marshal(m.Values)
	if err != nil {
		content = []byte(err.Error())
	}
	err = client.XAdd(ctx, &redis.XAddArgs{
		Stream: o.store.keys.in(p, "quarantine"), MaxLen: 1000, Approx: true,
		Values: []any{"key", o.store.keys.outbox(p), "what", "outbox entry " + m.ID + ": " + cause.Error(), "content", content},
	}).Err()
	done()
	if err != nil {
		return unavailable(fmt.Errorf("put an outbox entry in quarantine: %w", err))
	}
	return o.remove(ctx, p, []string{m.ID})
}

// unpack reads an outbox entry; lua/state.lua has its form, lua/key_expired.lua that of version 2.
func unpack(packed string) (Entry, error) {
	if strings.HasPrefix(packed, "2\n") {
		return unpackKey(packed)
	}
	f := strings.SplitN(packed, "\n", 17)
	if len(f) != 17 || f[0] != "1" {
		return Entry{}, fmt.Errorf("not an entry of version 1 with 17 lines: it has %d", len(f))
	}
	n := numbers{}
	e := presence.Event{
		Type: presence.EventType(f[1]), User: f[2], Session: f[3], Epoch: n.parse(f[4], 0), Reason: presence.Reason(f[5]),
		Deadline: n.time(f[7]), DetectedAt: n.time(f[8]), LastSeen: n.time(f[9]),
		Life: f[10], Generation: n.parse(f[11], 0), Traceparent: f[13], Groups: strings.Fields(f[14]),
	}
	if f[16] != "" {
		e.Meta = json.RawMessage(f[16])
	}
	for _, s := range strings.Fields(f[15]) {
		p := strings.Split(s, ",")
		if len(p) != 4 {
			return Entry{}, fmt.Errorf("session %q has %d parts", s, len(p))
		}
		e.Sessions = append(e.Sessions, presence.EventSession{
			Session: p[0], StartEpoch: n.parse(p[1], 0), TTLSeconds: int(n.parse(p[2], 0)), GraceSeconds: int(n.parse(p[3], 0)),
		})
	}
	basis, counter := n.parse(f[6], 0), n.parse(f[12], 0)
	switch {
	case n.bad:
		return Entry{}, errors.New("a number cannot be read")
	case !e.Type.Valid() || !e.Reason.Valid():
		return Entry{}, fmt.Errorf("unknown type %q or reason %q", e.Type, e.Reason)
	case presence.CheckID(e.User) != "" || presence.CheckID(e.Session) != "":
		return Entry{}, errors.New("user or session is no id") // the queue would refuse it, and all with it
	case e.Meta != nil && !json.Valid(e.Meta):
		return Entry{}, errors.New("meta is not JSON")
	}
	e.ID = presence.EventID(e.User, e.Session, e.Type, basis)
	if e.Traceparent == "" {
		e.Traceparent = presence.TraceparentOf(e.ID)
	}
	return Entry{N: counter, Event: e}, nil
}

func unpackKey(packed string) (Entry, error) {
	f := strings.SplitN(packed, "\n", 7)
	if len(f) != 7 || f[1] != string(presence.KeyExpired) {
		return Entry{}, errors.New("not an entry of version 2: the expiry of a key, with 7 lines")
	}
	n := numbers{}
	e := presence.Event{
		Type: presence.KeyExpired, Key: f[6], Epoch: n.parse(f[2], 0), Reason: presence.ReasonExpired, DetectedAt: n.time(f[2]),
		Life: f[3], Generation: n.parse(f[4], 0),
	}
	counter := n.parse(f[5], 0)
	if n.bad || e.Epoch <= 0 || e.Key == "" || !utf8.ValidString(e.Key) {
		return Entry{}, errors.New("a number or the key cannot be read")
	}
	e.ID = presence.KeyEventID(e.Key, e.Epoch, counter)
	e.Traceparent = presence.TraceparentOf(e.ID)
	return Entry{N: counter, Event: e}, nil
}

func (n *numbers) time(s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	t := time.UnixMilli(n.parse(s, 0)).UTC()
	if t.Year() < 0 || t.Year() > 9999 {
		n.bad = true // no JSON can hold it
	}
	return t
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
		return 0, unavailable(fmt.Errorf("read the oldest entries: %w", err))
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
