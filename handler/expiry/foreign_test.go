package expiry_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/expiry"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
)

// queues are several queues; one with a fault takes nothing.
type queues struct {
	mu     sync.Mutex
	sent   map[string][]queue.Message
	faults map[string]error
	tried  map[string]int
}

func newQueues() *queues {
	return &queues{sent: map[string][]queue.Message{}, faults: map[string]error{}, tried: map[string]int{}}
}

func (q *queues) Send(_ context.Context, name string, messages []queue.Message) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.tried[name]++
	if q.faults[name] == nil {
		q.sent[name] = append(q.sent[name], messages...)
	}
	return q.faults[name]
}

func (q *queues) fail(name string, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.faults[name] = err
}

func (q *queues) count(name string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.sent[name])
}

func (q *queues) tries(name string) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.tried[name]
}

// keys returns the expired keys on a queue, sorted, and their messages' ids.
func (q *queues) keys(t *testing.T, name string) (keys, ids []string) {
	t.Helper()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, m := range q.sent[name] {
		var body struct {
			ID, Type string
			Data     struct{ Key string }
		}
		if err := json.Unmarshal(m.Body, &body); err != nil || body.Type != "userconnectivity.redis.key.expired" || body.ID != m.ID {
			t.Errorf("on %s: %s, %v", name, m.Body, err)
		}
		keys, ids = append(keys, body.Data.Key), append(ids, m.ID)
	}
	slices.Sort(keys)
	return keys, ids
}

// listenTo starts a listener that sends to q. It returns once its subscription stands.
func (b *bench) listenTo(consumer string, q *queues, routes string) (l *expiry.Listener, stop func()) {
	b.t.Helper()
	client, store := b.connect()
	log := slog.New(slog.NewTextHandler(b.log, nil))
	to := queue.Destinations{Events: "events-topic", Routes: queue.Routes(routes)}
	l = expiry.NewListener(client, store, expiry.NewRelay(store.Outbox(consumer), partitions, q, b, codec, to, log), log)
	ctx, cancel := context.WithCancel(context.Background())
	stands := make(chan struct{})
	stood := sync.OnceFunc(func() { close(stands) })
	var wg sync.WaitGroup
	wg.Go(func() { l.Run(ctx) })
	wg.Go(func() {
		client.Subscribe(ctx, redisconn.Subscriber{Expired: l.KeyExpired, Subscribed: func() { l.WakeAll(); stood() }}, func(error) {})
	})
	stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	b.t.Cleanup(stop)
	<-stands
	return l, stop
}

// expire sets keys that expire at once, and looks at them until they have: that makes Redis tell.
func (b *bench) expire(keys ...string) {
	b.t.Helper()
	for _, key := range keys {
		if err := b.raw.Set(b.t.Context(), key, "x", time.Millisecond).Err(); err != nil {
			b.t.Fatal(err)
		}
	}
	for _, key := range keys {
		b.until("a key expires", func() bool { return b.raw.Exists(b.t.Context(), key).Val() == 0 })
	}
}

// age makes all that relays have read and not acknowledged look old, so that a takeover need not wait.
func (b *bench) age() {
	b.t.Helper()
	for p := range partitions {
		for _, m := range b.raw.XRange(b.t.Context(), b.key(p, "outbox"), "-", "+").Val() {
			pending := b.raw.Do(b.t.Context(), "XPENDING", b.key(p, "outbox"), "relay", m.ID, m.ID, 1)
			if rows, err := pending.Slice(); err == nil && len(rows) == 1 {
				consumer := rows[0].([]any)[1]
				b.raw.Do(b.t.Context(), "XCLAIM", b.key(p, "outbox"), "relay", consumer, 0, m.ID, "IDLE", 60_000, "JUSTID")
			}
		}
	}
}

func heard(listeners ...*expiry.Listener) (sum expiry.Foreign) {
	for _, l := range listeners {
		f := l.State().Foreign
		sum.Claimed += f.Claimed
		sum.NotHolder += f.NotHolder
		sum.Dropped += f.Dropped
	}
	return sum
}

// TestForeignKeys: with two listeners that both hear of each key, one makes exactly one event of it, for the queue of
// the first pattern that matches.
func TestForeignKeys(t *testing.T) {
	t.Parallel()
	b, q := setup(t), newQueues()
	// The last pattern matches our own keys too.
	routes := strings.ReplaceAll("P:cart:*=carts;P:l?=locks;P*=rest", "P", b.prefix)
	one, _ := b.listenTo("one", q, routes)
	two, _ := b.listenTo("two", q, routes)

	long, tooLong := b.prefix+":cart:"+strings.Repeat("k", redisstore.MaxForeignKey-len(b.prefix)-6), b.prefix+":cart:"+strings.Repeat("k", redisstore.MaxForeignKey-len(b.prefix)-5)
	carts := []string{b.prefix + ":cart:", long}
	for i := range 50 {
		carts = append(carts, fmt.Sprint(b.prefix, ":cart:", i))
	}
	locks := []string{b.prefix + ":l1", b.prefix + ":lé", b.prefix + ":l\xff", b.prefix + ":l\n"}
	rest := []string{b.prefix + ":lock", b.prefix + ":x\x00\xfe\xffy", b.prefix}
	b.expire(b.prefix+"{p0}old", b.prefix+"/something", b.key(1, "lease/nobody/default"), b.key(1, "something"))
	b.expire(carts...)
	b.expire(locks...)
	b.expire(rest...)
	b.expire(tooLong, "foreign-to-all"+b.prefix)
	b.beat("ann", time.Second)

	all := int64(len(carts) + len(locks) + len(rest))
	b.until("both have heard of all", func() bool { f := heard(one, two); return f.Claimed+f.NotHolder == 2*all && f.Dropped == 2 })
	if one.State().ExpiredEvents == 0 || two.State().ExpiredEvents == 0 {
		t.Error("our own lease woke nobody")
	}
	b.until("all is acknowledged", func() bool { return q.count("events-topic") == 2 && b.waiting(t.Context()) == 0 })
	if f := heard(one, two); f.Claimed != all {
		t.Errorf("%+v, want %d", f, all)
	}
	var ids []string
	for name, want := range map[string][]string{
		"carts": carts, "locks": {locks[0], locks[1], b.prefix + ":l\uFFFD", locks[3]}, "rest": {rest[0], b.prefix + ":x\x00\uFFFDy", rest[2]},
	} {
		got, of := q.keys(t, name)
		ids = append(ids, of...)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, id := range ids {
		r, err := b.events.Event(t.Context(), id)
		if err != nil || r.Event.Type != presence.KeyExpired || r.Event.Key == "" || r.Event.User != "" || r.Event.Session != "" || r.Status() != eventlog.Queued || len(r.History) != 2 {
			t.Errorf("in the log: %+v, %v", r, err)
		}
	}

	b.expire(locks[0])
	b.until("it expired again", func() bool { return q.count("locks") == len(locks)+1 })
	_, again := q.keys(t, "locks")
	if slices.Contains(ids, again[len(again)-1]) {
		t.Error("the second expiry of a key has the id of the first")
	}
	if one.State().Foreign.Error != "" || !strings.Contains(b.log.String(), "foreign keys expired") {
		t.Errorf("%+v, log: %s", one.State().Foreign, b.log)
	}
}

// TestForeignKeysOfADeadHolder: another listener reports them once the lease has ended; one that ends in order leaves
// it at once.
func TestForeignKeysOfADeadHolder(t *testing.T) {
	t.Parallel()
	b, q := setup(t), newQueues()
	ctx, key := t.Context(), b.prefix+":k"
	holders := func() (all []string) {
		for p := range partitions {
			all = append(all, b.raw.Get(ctx, b.key(p, "listener")).Val())
		}
		return all
	}
	for p := range partitions {
		b.raw.Set(ctx, b.key(p, "listener"), "dead", 2*time.Second)
	}
	l, stop := b.listenTo("one", q, key+"*=keys")
	b.expire(key)
	b.until("it is not the holder", func() bool { return l.State().Foreign.NotHolder == 1 || l.State().Foreign.Claimed == 1 })
	b.until("it took over", func() bool { return !slices.Contains(holders(), "dead") && !slices.Contains(holders(), "") })
	before := l.State().Foreign.Claimed
	b.expire(key + "2")
	b.until("it reports", func() bool { return l.State().Foreign.Claimed == before+1 && q.count("keys") > 0 })
	held := holders()
	stop()
	for p, who := range held {
		lease := b.key(p, "listener")
		if left := b.raw.PTTL(ctx, lease).Val(); b.raw.Get(ctx, lease).Val() == who && left > time.Millisecond {
			t.Errorf("it ended and holds the lease for %v", left)
		}
	}
}

// TestRouteIsDown: the queue of a route that takes nothing holds up no other, and gets its events when it is back,
// once each.
func TestRouteIsDown(t *testing.T) {
	t.Parallel()
	b, q := setup(t), newQueues()
	q.fail("carts", errAway)
	l, _ := b.listenTo("one", q, strings.ReplaceAll("P:cart*=carts;P:lock*=locks", "P", b.prefix))
	var carts, locks []string
	for i := range 8 {
		carts, locks = append(carts, fmt.Sprint(b.prefix, ":cart", i)), append(locks, fmt.Sprint(b.prefix, ":lock", i))
	}
	b.expire(carts...)
	b.until("its first send failed", func() bool { return q.tries("carts") > 0 })
	b.expire(locks...)
	b.beat("ann", time.Second)
	b.until("all others are served", func() bool { return q.count("locks") == len(locks) && q.count("events-topic") == 2 })
	b.until("the state tells of it", func() bool { return strings.Contains(l.State().RelayError, "carts: "+errAway.Error()) })
	b.until("only its events wait", func() bool { return b.waiting(t.Context()) == int64(len(carts)) })
	tries := q.tries("carts")
	b.until("it was tried again", func() bool { b.age(); return q.tries("carts") > tries })
	q.fail("carts", nil)
	b.until("it got its events", func() bool { b.age(); return q.count("carts") >= len(carts) && b.waiting(t.Context()) == 0 })
	if got, _ := q.keys(t, "carts"); !slices.Equal(got, carts) {
		t.Errorf("carts: %q", got)
	}
	b.until("the state is well again", func() bool { return l.State().RelayError == "" && l.State().Relayed == int64(len(carts)+len(locks)+2) })
	if b.log.Count("cannot be sent to the queue of their route") != 1 || b.log.Count("are sent to the queue of their route again") != 1 || b.log.Count("events cannot be relayed") != 0 {
		t.Errorf("an outage is one line at its begin and one at its end: %s", b.log)
	}
}

// TestRouteIsDownAtTheStart: more of its events than a batch, read before, do not keep a relay from new ones.
func TestRouteIsDownAtTheStart(t *testing.T) {
	t.Parallel()
	b, q := setup(t), newQueues()
	q.fail("keys", errAway)
	var keys []string
	for i := range 1600 {
		keys = append(keys, fmt.Sprintf("k%04d", i))
	}
	if n, err := b.store.KeysExpired(t.Context(), keys); n != len(keys) || err != nil {
		t.Fatal(n, err)
	}
	for p := range partitions {
		if entries, err := b.store.Outbox("same").Next(t.Context(), p, len(keys)); err != nil || len(entries) <= 500 {
			t.Fatal(len(entries), err)
		}
	}
	b.beat("ann", time.Minute)
	b.beat("bob", time.Minute)
	b.listenTo("same", q, "k*=keys")
	b.until("the users' events are sent", func() bool { return q.count("events-topic") == 2 && q.tries("keys") > 0 })
	q.fail("keys", nil)
	b.until("the keys' are, too", func() bool { b.age(); return b.waiting(t.Context()) == 0 })
	if got, _ := q.keys(t, "keys"); !slices.Equal(got, keys) {
		t.Errorf("%d keys were sent, want %d once each", len(got), len(keys))
	}
}

// TestEventLogIsDownForARoute: what its queue took is not sent again.
func TestEventLogIsDownForARoute(t *testing.T) {
	t.Parallel()
	b, q := setup(t), newQueues()
	failures := 0
	b.on("write", func() error { failures++; return errAway })
	if n, err := b.store.KeysExpired(t.Context(), []string{"k"}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	b.listenTo("one", q, "k=keys")
	b.until("the log was tried again", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return failures >= 3
	})
	b.on("write", nil)
	b.until("it is logged and acknowledged", func() bool { return b.waiting(t.Context()) == 0 })
	if q.count("keys") != 1 {
		t.Errorf("it was sent %d times", q.count("keys"))
	}
}

// TestRouteIsGone: the event is logged as dead, and is out of the way.
func TestRouteIsGone(t *testing.T) {
	t.Parallel()
	b, q := setup(t), newQueues()
	if n, err := b.store.KeysExpired(t.Context(), []string{"k", "other"}); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	id := ""
	for p := range partitions {
		entries, err := b.store.Outbox("one").Next(t.Context(), p, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Event.Key == "k" {
				id = e.Event.ID
			}
		}
	}
	l, _ := b.listenTo("one", q, "other=others")
	b.until("both are acknowledged", func() bool { return b.waiting(t.Context()) == 0 && l.State().Relayed == 1 })
	r, err := b.events.Event(t.Context(), id)
	if err != nil || r.Status() != eventlog.Dead || len(r.History) != 2 || !strings.Contains(r.History[1].Detail, "EXPIRATION_ROUTES") || r.Event.Key != "k" {
		t.Errorf("%+v, %v", r, err)
	}
	if q.count("others") != 1 || q.count("events-topic") != 0 {
		t.Errorf("sent: %+v", q.sent)
	}
}

// TestForeignKeysAreBounded: what is too much is dropped and counted, and the caller does not wait.
func TestForeignKeysAreBounded(t *testing.T) {
	t.Parallel()
	b, q := setup(t), newQueues()
	client, store := b.connect()
	log := slog.New(slog.DiscardHandler)
	to := queue.Destinations{Events: "events-topic", Routes: "*=keys"}
	l := expiry.NewListener(client, store, expiry.NewRelay(store.Outbox("one"), partitions, q, b, codec, to, log), log)
	const room, more = 10_000, 7
	for i := range room + more {
		l.KeyExpired(fmt.Sprint("k", i))
	}
	l.KeyExpired("")
	l.KeyExpired(b.prefix + "{p0}/listener")
	l.KeyExpired(b.prefix + "/partitions")
	if f := l.State().Foreign; f != (expiry.Foreign{Dropped: more + 1}) {
		t.Errorf("%+v", f)
	}
}

// TestWithoutRoutes nothing is done for keys of others.
func TestWithoutRoutes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l, _ := b.listen("one")
	l.KeyExpired("k")
	b.beat("ann", time.Second)
	b.settled(2)
	if f := l.State().Foreign; f != (expiry.Foreign{}) {
		t.Errorf("%+v", f)
	}
	for p := range partitions {
		if n := b.raw.Exists(t.Context(), b.key(p, "listener")).Val(); n != 0 {
			t.Error("it holds a listener lease")
		}
	}
}

// TestForeignKeysWhileRedisFails: they are lost and counted, the state says why, and later ones are reported.
func TestForeignKeysWhileRedisFails(t *testing.T) {
	t.Parallel()
	b, q := setup(t), newQueues()
	ctx := t.Context()
	for p := range partitions {
		b.raw.LPush(ctx, b.key(p, "listener"), "junk")
	}
	l, _ := b.listenTo("one", q, b.prefix+":*=keys")
	b.expire(b.prefix + ":k")
	b.until("it is counted", func() bool { f := l.State().Foreign; return f.Dropped == 1 && strings.Contains(f.Error, "WRONGTYPE") })
	for p := range partitions {
		b.raw.Del(ctx, b.key(p, "listener"))
	}
	b.until("it is well again", func() bool { return l.State().Foreign.Error == "" })
	b.expire(b.prefix + ":k")
	b.until("the next is reported", func() bool { return q.count("keys") == 1 })
}
