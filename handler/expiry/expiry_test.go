package expiry_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/expiry"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
	"userconnectivity/handler/sqlitestore"
)

func TestMain(m *testing.M) { testkit.Main(m) }

const partitions = 2

var codec = queue.Codec{Source: "/test", TypePrefix: "userconnectivity."}

// bench is a live state on a real Redis, a real event log, and a queue that keeps what it is sent. Listeners are
// started by the tests.
type bench struct {
	t      *testing.T
	server *testkit.Redis
	prefix string
	raw    redis.UniversalClient
	store  *redisstore.Store
	events *sqlitestore.Store
	log    *testkit.Output
	// subscriptions counts those that came to stand: what expired before one woke nobody.
	subscriptions atomic.Int64

	mu      sync.Mutex
	journal []string // what happened to each event, in order
	sent    []queue.Message
	send    func() error // may fail, or panic
	// crash says that Redis is killed: an acknowledgement whose answer was lost is made again, after the log.
	crash bool
	write func() error
}

func setup(t *testing.T) *bench {
	t.Helper()
	server, prefix := testkit.Shared(t)
	return setupOn(t, server, prefix)
}

func setupOn(t *testing.T, server *testkit.Redis, prefix string) *bench {
	t.Helper()
	b := &bench{t: t, server: server, prefix: prefix, log: &testkit.Output{}, events: sqlitestore.New(filepath.Join(t.TempDir(), "events.db"))}
	t.Cleanup(func() {
		if err := b.events.Close(); err != nil {
			t.Error(err)
		}
	})
	b.raw = redis.NewClient(&redis.Options{Addr: server.Addr})
	t.Cleanup(func() { _ = b.raw.Close() })
	_, b.store = b.connect()
	return b
}

// connect opens a client of its own, as each process has.
func (b *bench) connect() (*redisconn.Client, *redisstore.Store) {
	client := redisconn.NewClient(redisconn.Endpoint{URL: b.server.URL()}, "test", nil)
	store := redisstore.New(client, redisstore.Config{Prefix: b.prefix, Partitions: partitions, LeaseKeys: true})
	b.t.Cleanup(func() {
		store.Close()
		_ = client.Close()
	})
	return client, store
}

// listen starts a listener, with its subscription; stop ends both and waits.
func (b *bench) listen(consumer string) (l *expiry.Listener, stop func()) {
	client, store := b.connect()
	log := slog.New(slog.NewTextHandler(b.log, nil))
	relay := expiry.NewRelay(store.Outbox(consumer), partitions, b, b, codec, queue.Destinations{Events: "events-topic"}, log)
	l = expiry.NewListener(client, store, relay, log)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx); err != nil {
			b.t.Errorf("the listener ended with %v", err)
		}
	})
	wg.Go(func() {
		subscribed := func() {
			l.WakeAll()
			b.subscriptions.Add(1)
		}
		client.Subscribe(ctx, redisconn.Subscriber{Subscribed: subscribed, Expired: l.KeyExpired}, func(error) {})
	})
	stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	b.t.Cleanup(stop)
	return l, stop
}

// Send is the queue. Unlike a broker it keeps every copy, so that none goes unseen.
func (b *bench) Send(_ context.Context, name string, messages []queue.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.send != nil {
		if err := b.send(); err != nil {
			b.journal = append(b.journal, "send failed")
			return err
		}
	}
	for _, m := range messages {
		if name != "events-topic" {
			b.t.Errorf("%s was sent to %s", m.ID, name)
		}
		b.journal = append(b.journal, "sent "+m.ID)
		b.sent = append(b.sent, m)
	}
	return nil
}

// Write is the event log. What it is told of must be in the outbox still.
func (b *bench) Write(ctx context.Context, updates []eventlog.Update) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.write != nil {
		if err := b.write(); err != nil {
			b.journal = append(b.journal, "log failed")
			return err
		}
	}
	if waiting := b.waiting(ctx); !b.crash && waiting >= 0 && waiting < int64(len(updates)) {
		b.t.Errorf("%d events were logged when %d were left in the outbox: they were acknowledged before", len(updates), waiting)
	}
	for _, u := range updates {
		b.journal = append(b.journal, "logged "+u.Event.ID)
	}
	return b.events.Write(ctx, updates)
}

// waiting is how many entries the outbox has, -1 while Redis does not tell.
func (b *bench) waiting(ctx context.Context) int64 {
	var sum int64
	for p := range partitions {
		n, err := b.raw.XLen(ctx, b.key(p, "outbox")).Result()
		if err != nil {
			return -1
		}
		sum += n
	}
	return sum
}

func (b *bench) key(partition int, name string) string {
	return fmt.Sprintf("%s{p%d}/%s", b.prefix, partition, name)
}

func (b *bench) on(what string, do func() error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch what {
	case "send":
		b.send = do
	case "write":
		b.write = do
	}
}

// happened returns the journal up to now.
func (b *bench) happened() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.journal)
}

// delivered returns the events on the queue, in order.
func (b *bench) delivered() []presence.Event {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	events := make([]presence.Event, len(b.sent))
	for i, m := range b.sent {
		var err error
		if events[i], _, err = codec.Decode(m.Body); err != nil {
			b.t.Fatal(err)
		}
	}
	return events
}

func (b *bench) beat(user string, ttl time.Duration) {
	b.t.Helper()
	beat := presence.Beat{User: user, Session: presence.DefaultSession, TTL: &ttl, At: time.Now()}
	if _, err := b.store.Heartbeats(b.t.Context(), []presence.Beat{beat}); err != nil {
		b.t.Fatal(err)
	}
}

// expireLease lets a lease expire that no session has. (That of a session may be removed by its claim before Redis
// gets to it, and then no event comes.)
func (b *bench) expireLease() {
	b.t.Helper()
	if err := b.raw.Set(b.t.Context(), b.key(0, "lease/nobody/default"), 1, time.Millisecond).Err(); err != nil {
		b.t.Fatal(err)
	}
}

// pass moves the clock of Redis's scripts.
func (b *bench) pass(d time.Duration) {
	b.t.Helper()
	for p := range partitions {
		if err := b.raw.HIncrBy(b.t.Context(), b.key(p, "meta"), "offset", d.Milliseconds()).Err(); err != nil {
			b.t.Fatal(err)
		}
	}
}

// until waits until done.
func (b *bench) until(what string, done func() bool) {
	b.t.Helper()
	deadline := time.After(30 * time.Second)
	for !done() {
		select {
		case <-deadline:
			b.t.Fatalf("still waiting until %s; journal:\n%s\nlog:\n%s", what, strings.Join(b.happened(), "\n"), b.log)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// settled waits until n events were sent and the outbox is empty: everything was acknowledged.
func (b *bench) settled(n int) {
	b.t.Helper()
	b.until(fmt.Sprintf("%d events are sent, logged and acknowledged", n), func() bool {
		return len(b.delivered()) >= n && b.waiting(b.t.Context()) == 0
	})
}

// chains checks that each event was sent once, logged after that, and is queued in the log.
func (b *bench) chains() {
	b.t.Helper()
	sent := map[string]int{}
	logged := map[string]bool{}
	for _, line := range b.happened() {
		what, id, _ := strings.Cut(line, " ")
		switch what {
		case "sent":
			sent[id]++
		case "logged":
			logged[id] = true
			if sent[id] == 0 {
				b.t.Errorf("%s was logged as queued before it was sent", id)
			}
		}
	}
	for id, n := range sent {
		if n != 1 || !logged[id] {
			b.t.Errorf("%s was sent %d times, logged %v", id, n, logged[id])
		}
		r, err := b.events.Event(b.t.Context(), id)
		if err != nil || r.Status() != eventlog.Queued || len(r.History) != 2 || r.History[0].Status != eventlog.Detected || !r.History[0].At.Equal(r.Event.DetectedAt) {
			b.t.Errorf("%s in the log: %+v, %v", id, r.History, err)
		}
	}
}

func kinds(events []presence.Event, user string) string {
	var all []string
	for _, e := range events {
		if e.User == user {
			all = append(all, string(e.Type)+" "+string(e.Reason))
		}
	}
	return strings.Join(all, ", ")
}

var errAway = errors.New("away for a while")

// TestFromBeatToQueueAndLog is the whole way of one session whose beats stop, by the real clock.
func TestFromBeatToQueueAndLog(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l, _ := b.listen("one")
	b.until("the subscription stands", func() bool { return b.subscriptions.Load() == 1 })
	b.beat("ann", time.Second)
	b.settled(2)
	b.chains()
	events := b.delivered()
	if got := kinds(events, "ann"); got != "user.online beat, user.offline expired" {
		t.Fatalf("events %s", got)
	}
	off := events[1]
	if off.ID != presence.EventID("ann", presence.DefaultSession, presence.UserOffline, events[0].Epoch) || off.DetectedAt.Before(off.Deadline) || off.Epoch <= events[0].Epoch {
		t.Errorf("%+v after %+v", off, events[0])
	}
	b.expireLease()
	b.until("an expired event came in", func() bool { return l.State().ExpiredEvents > 0 })
	b.until("the state shows it all", func() bool {
		s := l.State()
		return s.Running && s.Claimed == 1 && s.Relayed == 2 && s.Outbox == 0 && s.Sweeps > 0 && s.Notifications == redisconn.NotificationsOn
	})
	if s := l.State(); s.Lost != 0 || s.Quarantined != 0 || s.SweepError != "" || s.RelayError != "" || s.NotificationsDetail != "" || s.LastSweep.Before(s.Started) {
		t.Errorf("%+v", s)
	}
}

// TestOnlyTheSilentGoOffline: of many users exactly those whose beats stop, once each, with two listeners at work.
func TestOnlyTheSilentGoOffline(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.listen("one")
	b.listen("two")
	const users = 300
	for n := range users {
		b.beat(fmt.Sprint("user-", n), time.Hour)
	}
	b.pass(45 * time.Minute)
	for n := 0; n < users; n += 3 {
		b.beat(fmt.Sprint("user-", n), time.Hour)
	}
	b.pass(30 * time.Minute)
	b.settled(users + users*2/3)
	b.chains()
	events := b.delivered()
	if len(events) != users+users*2/3 {
		t.Errorf("%d events, want %d", len(events), users+users*2/3)
	}
	for n := range users {
		want := "user.online beat, user.offline expired"
		if n%3 == 0 {
			want = "user.online beat"
		}
		user := fmt.Sprint("user-", n)
		// Two relays may send the events of one user in any order: epochs order them.
		mine := slices.DeleteFunc(slices.Clone(events), func(e presence.Event) bool { return e.User != user })
		slices.SortFunc(mine, func(x, y presence.Event) int { return int(x.Epoch - y.Epoch) })
		if got := kinds(mine, user); got != want {
			t.Errorf("%s: %s, want %s", user, got, want)
		}
	}
}

// TestQueueIsDown: nothing is logged or acknowledged, nothing is lost, and it goes on when the queue is back.
func TestQueueIsDown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.on("send", func() error { return errAway })
	l, _ := b.listen("one")
	b.beat("ann", 5*time.Second)
	b.beat("bob", 5*time.Second)
	b.pass(6 * time.Second)
	failed := func() int {
		return len(slices.DeleteFunc(b.happened(), func(s string) bool { return s != "send failed" }))
	}
	b.until("the send was tried again", func() bool { return failed() >= 3 })
	b.until("the state tells of it", func() bool { s := l.State(); return strings.Contains(s.RelayError, errAway.Error()) && s.Claimed == 2 })
	if n := b.waiting(t.Context()); n != 4 {
		t.Errorf("%d entries in the outbox, want 4", n)
	}
	if got := failed(); got != len(b.happened()) {
		t.Errorf("something but failed sends happened: %q", b.happened())
	}
	b.until("the oldest entry's age is measured", func() bool { return l.State().Oldest > 0 })
	b.on("send", nil)
	b.settled(4)
	b.chains()
	b.until("the state is well again", func() bool { s := l.State(); return s.RelayError == "" && s.Relayed == 4 && s.Oldest == 0 })
	if b.log.Count("events cannot be relayed") != 1 || b.log.Count("events are relayed again") != 1 {
		t.Errorf("an outage is one line at its begin and one at its end: %s", b.log)
	}
}

// TestEventLogIsDown: what was sent is not sent again; it is logged and acknowledged when the log is back.
func TestEventLogIsDown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	failures := 0
	b.on("write", func() error { failures++; return errAway })
	b.listen("one")
	b.beat("ann", 5*time.Second)
	b.pass(6 * time.Second)
	b.until("the log was tried again", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return failures >= 3
	})
	if n := b.waiting(t.Context()); n == 0 {
		t.Error("acknowledged without being logged")
	}
	b.on("write", nil)
	b.settled(2)
	b.chains()
}

// TestPanicInTheRelay: it is a fault of that round, not the end of the process.
func TestPanicInTheRelay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	panics := 0
	b.on("send", func() error {
		if panics++; panics <= 2 {
			b.mu.Unlock() // as the deferred unlock does it again
			defer b.mu.Lock()
			panic("driver fault")
		}
		return nil
	})
	b.listen("one")
	b.beat("ann", 5*time.Second)
	b.pass(6 * time.Second)
	b.settled(2)
	b.chains()
	if b.log.Count("driver fault") == 0 || b.log.Count("goroutine") == 0 {
		t.Errorf("logged: %s", b.log)
	}
}

// TestDeadRelay: another relay takes over what a dead one had read and not acknowledged.
func TestDeadRelay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	read := b.abandon("dead", 3)
	for p, ids := range read {
		if len(ids) == 0 {
			continue
		}
		// As if it had died a minute ago.
		args := []any{"XCLAIM", b.key(p, "outbox"), "relay", "dead", 0}
		for _, id := range ids {
			args = append(args, id)
		}
		if err := b.raw.Do(t.Context(), append(args, "IDLE", 60_000, "JUSTID")...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	b.listen("heir")
	b.settled(3)
	b.chains()
}

// abandon makes events and reads them as a relay of the given name that then dies.
func (b *bench) abandon(consumer string, events int) (read map[int][]string) {
	b.t.Helper()
	for n := range events {
		b.beat(fmt.Sprint("user-", n), time.Minute)
	}
	read = map[int][]string{}
	for p := range partitions {
		entries, err := b.store.Outbox(consumer).Next(b.t.Context(), p, 100)
		if err != nil {
			b.t.Fatal(err)
		}
		for _, e := range entries {
			read[p] = append(read[p], e.StreamID)
		}
	}
	return read
}

// TestRestartedRelay: under its old name a relay takes up its own entries at once. Their idle time is kept at
// zero meanwhile, so that a takeover cannot be what brings them.
func TestRestartedRelay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	read := b.abandon("same", 3)
	b.listen("same")
	b.until("its entries are relayed", func() bool {
		for p, ids := range read {
			for _, id := range ids {
				if err := b.raw.Do(t.Context(), "XCLAIM", b.key(p, "outbox"), "relay", "same", 0, id, "IDLE", 0, "JUSTID").Err(); err != nil {
					t.Fatal(err)
				}
			}
		}
		return len(b.delivered()) == 3 && b.waiting(t.Context()) == 0
	})
	b.chains()
}

// TestRestartInTheMiddle: a listener that ends between sending and logging leaves nothing behind.
func TestRestartInTheMiddle(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.on("write", func() error { return errAway })
	_, stop := b.listen("one")
	b.beat("ann", time.Minute)
	b.until("it is sent and not logged", func() bool { return slices.Contains(b.happened(), "log failed") })
	stop()
	b.on("write", nil)
	b.listen("one")
	b.until("it is logged and acknowledged", func() bool { return b.waiting(t.Context()) == 0 })
	events := b.delivered()
	if len(events) < 2 || events[0].ID != events[len(events)-1].ID { // at least once, the same id
		t.Errorf("%+v", events)
	}
	if r, err := b.events.Event(t.Context(), events[0].ID); err != nil || r.Status() != eventlog.Queued {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestNotificationsAreSwitchedOn where the server allows it.
func TestNotificationsAreSwitchedOn(t *testing.T) {
	t.Parallel()
	b := setupOn(t, testkit.Start(t, "--notify-keyspace-events", ""), "uc:")
	l, _ := b.listen("one")
	b.until("they are on", func() bool {
		return l.State().Notifications == redisconn.NotificationsOn && b.subscriptions.Load() == 1
	})
	flags, err := b.raw.ConfigGet(t.Context(), "notify-keyspace-events").Result()
	if got := flags["notify-keyspace-events"]; err != nil || !strings.Contains(got, "E") || !strings.Contains(got, "x") {
		t.Errorf("notify-keyspace-events is %q, %v", got, err)
	}
	b.expireLease()
	b.until("an expired event came in", func() bool { return l.State().ExpiredEvents > 0 })
	// What stands again after a fault may be another server: it is asked at once, not when its turn comes.
	if err := b.raw.ConfigSet(t.Context(), "notify-keyspace-events", "").Err(); err != nil {
		t.Fatal(err)
	}
	if err := b.raw.ClientKillByFilter(t.Context(), "TYPE", "pubsub").Err(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	b.until("they are on again", func() bool {
		flags, err := b.raw.ConfigGet(t.Context(), "notify-keyspace-events").Result()
		return err == nil && flags["notify-keyspace-events"] != ""
	})
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("they are on again after %v, as if only their turn of 15 s had come", took)
	}
}

// TestWithoutNotifications: the deadline index alone finds what is due, and the state says how to switch them on.
func TestWithoutNotifications(t *testing.T) {
	t.Parallel()
	b := setupOn(t, testkit.Start(t, "--notify-keyspace-events", "", "--rename-command", "CONFIG", ""), "uc:")
	l, _ := b.listen("one")
	b.beat("ann", time.Second)
	b.settled(2)
	b.chains()
	if got := kinds(b.delivered(), "ann"); got != "user.online beat, user.offline expired" {
		t.Errorf("events %s", got)
	}
	b.until("the state tells of it", func() bool { return l.State().NotificationsDetail != "" })
	if s := l.State(); s.ExpiredEvents != 0 || s.Notifications == redisconn.NotificationsOn || !strings.Contains(s.NotificationsDetail, "notify-keyspace-events") {
		t.Errorf("%+v", s)
	}
}

// TestJunk: what cannot be understood is put aside, and the rest goes on.
func TestJunk(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat("ann", 5*time.Second)
	ctx := t.Context()
	far := strings.Join([]string{"1", "user.online", "far", "default", "7", "beat", "7", "9999999999999999", "1767225600000", "", "life", "0", "1", "", "", "", ""}, "\n")
	for p := range partitions {
		for _, values := range [][]any{{"e", "junk"}, {"other", "field"}, {"e", ""}, {"e", strings.Repeat("\n", 16)}, {"e", "1\nuser.gone" + strings.Repeat("\n", 15)}, {"e", far}} {
			if err := b.raw.XAdd(ctx, &redis.XAddArgs{Stream: b.key(p, "outbox"), Values: values}).Err(); err != nil {
				t.Fatal(err)
			}
		}
		due := []redis.Z{{Score: 1, Member: "no-slash"}, {Score: 2, Member: "ghost/default"}, {Score: 3, Member: "a b/c"}, {Score: 4, Member: "/"}, {Score: 5, Member: ""}, {Score: 6, Member: "\xff/\x00"}}
		if err := b.raw.ZAdd(ctx, b.key(p, "due"), due...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	l, _ := b.listen("one")
	b.pass(6 * time.Second)
	b.settled(2)
	b.until("the junk is out of the way", func() bool {
		var left int64
		for p := range partitions {
			left += b.raw.ZCard(ctx, b.key(p, "due")).Val()
		}
		return left == 0 && b.waiting(ctx) == 0
	})
	b.chains()
	if got := kinds(b.delivered(), "ann"); got != "user.online beat, user.offline expired" {
		t.Errorf("events %s", got)
	}
	b.until("it is counted", func() bool { return l.State().Quarantined == 6*partitions })
	for p := range partitions {
		if n := b.raw.XLen(ctx, b.key(p, "quarantine")).Val(); n != 12 {
			t.Errorf("partition %d has %d entries in quarantine, want 12", p, n)
		}
	}
}

// TestRedisGoesAway: the listener waits, tells of it once, and finds what became due meanwhile.
func TestRedisGoesAway(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	b := setupOn(t, server, "uc:")
	b.crash = true
	l, _ := b.listen("one")
	b.beat("ann", time.Second)
	b.until("the online event is relayed", func() bool { return len(b.delivered()) > 0 })
	b.beat("bob", time.Hour)
	b.until("the subscription stands", func() bool { return b.subscriptions.Load() > 0 })
	subscriptions := b.subscriptions.Load()
	server.Kill()
	b.until("the sweep fails", func() bool { return l.State().SweepError != "" })
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	b.until("the sweep works again", func() bool { return l.State().SweepError == "" })
	b.until("ann is offline", func() bool { // an event whose acknowledgement was lost comes again
		seen := map[string]bool{}
		once := slices.DeleteFunc(b.delivered(), func(e presence.Event) bool {
			again := seen[e.ID]
			seen[e.ID] = true
			return again
		})
		return kinds(once, "ann") == "user.online beat, user.offline expired" && kinds(once, "bob") == "user.online beat"
	})
	if b.log.Count("the sweep could not read or claim") != 1 || b.log.Count("the sweep works again") != 1 {
		t.Errorf("an outage is one line at its begin and one at its end: %s", b.log)
	}
	b.until("the subscription stands again", func() bool { return b.subscriptions.Load() > subscriptions })
	before := l.State().ExpiredEvents
	b.expireLease()
	b.until("an expired event came in again", func() bool { return l.State().ExpiredEvents > before })
}

// TestNothingIsLeftRunning runs alone: it looks at every goroutine of the process.
func TestNothingIsLeftRunning(t *testing.T) {
	server := testkit.Start(t)
	before := goleak.IgnoreCurrent()
	t.Run("listener", func(t *testing.T) {
		b := setupOn(t, server, "uc:")
		l, stop := b.listen("one")
		b.beat("ann", 5*time.Second)
		b.pass(6 * time.Second)
		b.settled(2)
		stop()
		if l.State().Running {
			t.Error("it says that it runs")
		}
	})
	goleak.VerifyNone(t, before)
}

// TestOnePartitionIsBroken: a partition that cannot be swept stops no other, and the state says what is wrong.
func TestOnePartitionIsBroken(t *testing.T) {
	t.Parallel()
	b := setup(t)
	l, _ := b.listen("one")
	const users = 40
	inPartition := make([]int, partitions)
	for n := range users {
		b.beat(fmt.Sprint("user-", n), time.Hour)
	}
	b.settled(users)
	for p := range inPartition {
		n, err := b.raw.ZCard(t.Context(), b.key(p, "due")).Result()
		if err != nil {
			t.Fatal(err)
		}
		inPartition[p] = int(n)
	}
	// What the partition had is kept aside.
	const broken = 0
	kept := b.key(broken, "kept")
	if err := b.raw.Rename(t.Context(), b.key(broken, "due"), kept).Err(); err != nil {
		t.Fatal(err)
	}
	if err := b.raw.Set(t.Context(), b.key(broken, "due"), "junk", 0).Err(); err != nil {
		t.Fatal(err)
	}
	b.pass(2 * time.Hour)
	b.settled(users + users - inPartition[broken])
	b.until("the state says it", func() bool { return strings.Contains(l.State().SweepError, "WRONGTYPE") })
	if err := b.raw.Rename(t.Context(), kept, b.key(broken, "due")).Err(); err != nil {
		t.Fatal(err)
	}
	b.settled(2 * users)
	b.chains()
	b.until("the state is well", func() bool { return l.State().SweepError == "" })
	if n := b.log.Count("the sweep could not read or claim"); n != 1 {
		t.Errorf("%d lines tell of it", n)
	}
}
