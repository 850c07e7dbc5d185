package expiry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
)

// relayRig is a relay on a real Redis, without a listener: the test wakes it.
type relayRig struct {
	t          *testing.T
	server     *testkit.Redis
	prefix     string
	partitions int
	raw        *redis.Client
	store      *redisstore.Store
	relay      *Relay

	mu   sync.Mutex
	send func(partition int) error
	// refuses has the queue refuse the messages of a user for good. With unnamed it tells that there is one, and takes
	// none.
	refuses string
	unnamed bool
	// write is the event log; what it returns is the answer about a batch of that partition.
	write func(ctx context.Context, partition int) error
	sent  map[string]int // by user
	// updates are what the log took, in its order.
	updates []eventlog.Update
	log     bytes.Buffer
}

// newRelayRig makes a relay that reaches Redis at addr; "" is the server's own.
func newRelayRig(t *testing.T, server *testkit.Redis, prefix, addr string, partitions int) *relayRig {
	t.Helper()
	r := &relayRig{t: t, server: server, prefix: prefix, partitions: partitions, raw: server.Client(), sent: map[string]int{}}
	t.Cleanup(func() { _ = r.raw.Close() })
	r.store = r.connect(server.Addr)
	outbox := r.store.Outbox("one")
	if addr != "" {
		outbox = r.connect(addr).Outbox("one")
	}
	codec := queue.Codec{Source: "/test", TypePrefix: "userconnectivity."}
	r.relay = NewRelay(outbox, partitions, r, r, codec, queue.Destinations{Events: "events"}, slog.New(slog.NewTextHandler(lines{r}, nil)))
	return r
}

func (r *relayRig) connect(addr string) *redisstore.Store {
	client := redisconn.NewClient(redisconn.Endpoint{URL: "redis://" + addr}, "test", nil)
	store := redisstore.New(client, redisstore.Config{Prefix: r.prefix, Partitions: r.partitions})
	r.t.Cleanup(func() {
		store.Close()
		_ = client.Close()
	})
	return store
}

// run runs the relay until the test ends.
func (r *relayRig) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.relay.loop(ctx) })
	r.t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
}

// partition is that of a user, the same for ever.
func (r *relayRig) partition(user string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(user))
	return int(h.Sum32() % uint32(r.partitions))
}

// user makes the name of a user in a partition.
func (r *relayRig) user(partition int, name string) string {
	for i := 0; ; i++ {
		if user := fmt.Sprint(name, i); r.partition(user) == partition {
			return user
		}
	}
}

// beat brings a new user of each of the partitions online, and wakes the relay.
func (r *relayRig) beat(name string, partitions ...int) {
	r.t.Helper()
	r.online(name, partitions...)
	for _, p := range partitions {
		r.relay.wake(p)
	}
}

// online brings a new user of each of the partitions online.
func (r *relayRig) online(name string, partitions ...int) {
	r.t.Helper()
	beats, ttl := make([]presence.Beat, len(partitions)), time.Hour
	for i, p := range partitions {
		beats[i] = presence.Beat{User: r.user(p, name), Session: presence.DefaultSession, TTL: &ttl, At: time.Now()}
	}
	if _, err := r.store.Heartbeats(r.t.Context(), beats); err != nil {
		r.t.Fatal(err)
	}
}

// Send is the queue, and counts the copies of each event.
func (r *relayRig) Send(_ context.Context, _ string, messages []queue.Message) error {
	r.mu.Lock()
	send := r.send
	r.mu.Unlock()
	if send != nil {
		if err := send(r.partition(messages[0].SessionID)); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	refused := refusedMessages{}
	if r.unnamed && slices.ContainsFunc(messages, func(m queue.Message) bool { return strings.HasPrefix(m.SessionID, r.refuses) }) {
		return &fault.Error{Kind: fault.Invalid, Message: "too large"}
	}
	for _, m := range messages {
		if r.refuses != "" && strings.HasPrefix(m.SessionID, r.refuses) {
			refused[m.ID] = "too large"
			continue
		}
		r.sent[m.SessionID]++
	}
	if len(refused) > 0 {
		return fmt.Errorf("send: %w", refused)
	}
	return nil
}

// refusedMessages is what a queue says of messages that it never takes.
type refusedMessages map[string]string

func (m refusedMessages) Error() string              { return fmt.Sprintf("%d messages are refused", len(m)) }
func (m refusedMessages) Refused() map[string]string { return m }

// sentOf is how many copies of the events of all users whose names begin so were sent.
func (r *relayRig) sentOf(prefix string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for user, copies := range r.sent {
		if strings.HasPrefix(user, prefix) {
			n += copies
		}
	}
	return n
}

func (r *relayRig) Write(ctx context.Context, updates []eventlog.Update) error {
	r.mu.Lock()
	write := r.write
	r.mu.Unlock()
	var err error
	if write != nil {
		err = write(ctx, r.partition(updates[0].Event.User))
	}
	var refused *eventlog.RefusedError
	if err == nil || errors.As(err, &refused) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.updates = append(r.updates, updates...)
	}
	return err
}

// writes has the event log answer in another way.
func (r *relayRig) writes(f func(ctx context.Context, partition int) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.write = f
}

// waiting is how many entries the outboxes of the partitions have.
func (r *relayRig) waiting(partitions ...int) (n int64) {
	r.t.Helper()
	for _, p := range partitions {
		length, err := r.raw.XLen(r.t.Context(), r.outbox(p)).Result()
		if err != nil {
			r.t.Fatal(err)
		}
		n += length
	}
	return n
}

func (r *relayRig) outbox(p int) string { return fmt.Sprintf("%s{p%d}/outbox", r.prefix, p) }

// until waits until done.
func (r *relayRig) until(what string, done func() bool) {
	r.t.Helper()
	deadline := time.After(25 * time.Second) // less than the relay waits for a log that hangs
	for !done() {
		select {
		case <-deadline:
			_, fault := r.relay.progress()
			r.t.Fatalf("still waiting until %s; the relay says %q", what, fault)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// once checks that every event was sent once.
func (r *relayRig) once(events int) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.sent) != events {
		r.t.Errorf("%d events were sent, want %d", len(r.sent), events)
	}
	for user, n := range r.sent {
		if n != 1 {
			r.t.Errorf("the event of %s was sent %d times", user, n)
		}
	}
}

func (r *relayRig) logged(text string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Count(r.log.String(), text)
}

// lines is where the relay logs to.
type lines struct{ rig *relayRig }

func (l lines) Write(p []byte) (int, error) {
	l.rig.mu.Lock()
	defer l.rig.mu.Unlock()
	return l.rig.log.Write(p)
}

// slots is how many slots of all steps are taken.
func (r *relayRig) slots() (n int) {
	for _, s := range r.relay.steps {
		n += len(s.steady) + len(s.retries)
	}
	return n
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// TestPartitionsThatHang: three times as many as there are slots hold up no other, neither at their first try nor when
// they hang again.
func TestPartitionsThatHang(t *testing.T) {
	t.Parallel()
	server, prefix := testkit.Shared(t)
	const partitions, hang = 4 * relayWorkers, 3 * relayWorkers
	r := newRelayRig(t, server, prefix, "", partitions)
	ill, well := upTo(partitions)[:hang], upTo(partitions)[hang:]
	var tries [2][hang]atomic.Int64
	sum := func(round int) (n int64) {
		for p := range hang {
			n += tries[round][p].Load()
		}
		return n
	}
	// hanging is an event log that answers nothing about the ill partitions before the end.
	hanging := func(round int, end <-chan struct{}, err error) func(context.Context, int) error {
		return func(ctx context.Context, p int) error {
			if p >= hang {
				return nil
			}
			tries[round][p].Add(1)
			select {
			case <-end:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	first, second := make(chan struct{}), make(chan struct{})
	r.writes(hanging(0, first, errors.New("away")))
	r.run()
	r.beat("slow", ill...)
	r.until("as many hang as there are slots", func() bool { return sum(0) >= relayWorkers })
	r.beat("a", well...)
	r.until("the others are relayed", func() bool { return r.waiting(well...) == 0 })
	r.until("all the ill hang", func() bool { return sum(0) == hang })

	r.writes(hanging(1, second, nil))
	close(first)
	r.until("as many hang again as there are slots", func() bool { return sum(1) >= relayWorkers })
	r.until("the faults are told", func() bool { _, fault := r.relay.progress(); return strings.Contains(fault, "away (and ") })
	r.beat("b", well...)
	r.until("the others are relayed meanwhile", func() bool { return r.waiting(well...) == 0 })
	r.until("all the ill hang again", func() bool { return sum(1) == hang })
	if n := sum(0); n != hang {
		t.Errorf("the others waited until the log was tried %d times for %d partitions", n, hang)
	}
	close(second)
	r.until("all is relayed", func() bool { return r.waiting(upTo(partitions)...) == 0 })
	r.once(partitions + len(well))
	r.until("nothing fails", func() bool {
		relayed, fault := r.relay.progress()
		return fault == "" && relayed == int64(partitions+len(well))
	})
	if begin, end := r.logged("events cannot be relayed"), r.logged("events are relayed again"); begin != 1 || end != 1 {
		t.Errorf("an outage is one line at its begin and one at its end, not %d and %d: %s", begin, end, &r.log)
	}
}

// TestRetriesHaveSlotsOfTheirOwn: a partition whose last try of a step failed takes none of the others' slots, until it is
// well.
func TestRetriesHaveSlotsOfTheirOwn(t *testing.T) {
	t.Parallel()
	for at, name := range []string{"send", "log", "acknowledge"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server, prefix := testkit.Shared(t)
			r := newRelayRig(t, server, prefix, "", 2)
			s := r.relay.steps[at]
			for range relayWorkers { // as if others had them for ever
				s.steady <- struct{}{}
			}
			r.relay.lanes[0].failed[at] = true
			r.run()
			r.beat("a", 0, 1)
			r.until("the one that failed is relayed", func() bool { return r.waiting(0) == 0 })
			if r.waiting(1) != 1 {
				t.Error("the other did not wait for a slot")
			}
			r.until("it is well, and waits as the other does", func() bool { return len(s.retries) == 0 })
			r.beat("b", 0)
			for range relayWorkers {
				s.retries <- struct{}{}
			}
			<-s.steady
			r.until("all is relayed", func() bool { return r.waiting(0, 1) == 0 })
			r.once(3)
		})
	}
}

// TestSlotsAreLent for no longer than lendAfter, and each is given back once.
func TestSlotsAreLent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := make(slots, 2)
		began := time.Now()
		slow, err := s.take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 { // the second slot goes round
			done, err := s.take(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			done()
		}
		if waited := time.Since(began); waited != 0 || len(s) != 1 {
			t.Errorf("waited %v, %d are taken", waited, len(s))
		}
		if _, err := s.take(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), lendAfter-1)
		defer cancel()
		if _, err := s.take(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a third slot, or %v", err)
		}
		third, err := s.take(t.Context())
		if waited := time.Since(began); err != nil || waited != lendAfter {
			t.Errorf("lent after %v: %v", waited, err)
		}
		synctest.Wait()
		if len(s) != 1 {
			t.Errorf("%d are taken, want the third alone", len(s))
		}
		slow() // lent already
		if len(s) != 1 {
			t.Error("a slot was given back twice")
		}
		third()
		if len(s) != 0 {
			t.Errorf("%d are taken at the end", len(s))
		}
	})
}

// TestPanicOfAPartition: it is that partition's fault, and the others are relayed.
func TestPanicOfAPartition(t *testing.T) {
	t.Parallel()
	server, prefix := testkit.Shared(t)
	r := newRelayRig(t, server, prefix, "", 3)
	var healed atomic.Bool
	r.send = func(p int) error {
		if p == 1 && !healed.Load() {
			panic("driver fault")
		}
		return nil
	}
	r.run()
	r.beat("a", 0, 1, 2)
	r.until("the others are relayed", func() bool { return r.waiting(0, 2) == 0 })
	r.until("the fault is told", func() bool { _, fault := r.relay.progress(); return fault == "partition 1: panicked: driver fault" })
	healed.Store(true)
	r.until("it is relayed", func() bool { return r.waiting(1) == 0 })
	r.until("no slot is kept", func() bool { return r.slots() == 0 })
	r.once(3)
}

// TestFaultsOfPartitions are told as long as one of them fails.
func TestFaultsOfPartitions(t *testing.T) {
	t.Parallel()
	server, prefix := testkit.Shared(t)
	r := newRelayRig(t, server, prefix, "", 5)
	failsAbove := func(above int) {
		r.writes(func(_ context.Context, p int) error {
			if p > above {
				return fmt.Errorf("no room for %d", p)
			}
			return nil
		})
	}
	tells := func(want string) {
		t.Helper()
		r.until(fmt.Sprintf("the fault is %q", want), func() bool { _, fault := r.relay.progress(); return fault == want })
	}
	failsAbove(1)
	r.run()
	r.beat("a", upTo(5)...)
	tells("partition 2: log 1 events: no room for 2 (and 2 more of 5 partitions)")
	failsAbove(3)
	tells("partition 4: log 1 events: no room for 4")
	if r.logged("events are relayed again") != 0 {
		t.Error("the log tells of an end before there is one")
	}
	failsAbove(4)
	tells("")
	r.until("the end is logged", func() bool { return r.logged("events are relayed again") == 1 })
	if r.logged("events cannot be relayed") != 1 {
		t.Errorf("logged: %s", &r.log)
	}
	r.once(5)
}

// TestTakeOverIsRare: it is looked for entries of dead relays where the outbox is not empty, and there now and then.
func TestTakeOverIsRare(t *testing.T) {
	t.Parallel()
	r := newRelayRig(t, testkit.Start(t), "uc", "", 4)
	began := time.Now()
	r.run()
	for i := range 50 {
		r.beat(fmt.Sprint("a", i, "-"), 2)
		r.until("it is relayed", func() bool { return r.waiting(2) == 0 })
	}
	stats, err := r.raw.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(stats, "cmdstat_xpending:calls=")
	text, _, _ = strings.Cut(text, ",")
	calls, err := strconv.Atoi(text)
	if most := 1 + int(time.Since(began)/takeOverEvery); err != nil || calls < 1 || calls > most {
		t.Errorf("%d looks, want 1 to %d: %v", calls, most, err)
	}
}

// cutter is a TCP server in front of Redis. It can lose an answer.
type cutter struct {
	addr, to string
	// lose is the text in the answer that is lost; with it all connections are, and new ones until it is nil.
	lose atomic.Pointer[string]
	lost chan struct{}

	mu    sync.Mutex
	conns []net.Conn
	all   sync.WaitGroup
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{addr: l.Addr().String(), to: to, lost: make(chan struct{}, 1)}
	c.all.Go(func() {
		for {
			front, err := l.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", to)
			if err != nil {
				_ = front.Close()
				continue
			}
			c.mu.Lock()
			c.conns = append(c.conns, front, back)
			c.mu.Unlock()
			c.all.Go(func() { c.pass(front, back, false) })
			c.all.Go(func() { c.pass(back, front, true) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		c.cut()
		c.all.Wait()
	})
	return c
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}

func (c *cutter) pass(from, to net.Conn, answers bool) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if lose := c.lose.Load(); answers && lose != nil && bytes.Contains(buf[:n], []byte(*lose)) {
			c.cut()
			select {
			case c.lost <- struct{}{}:
			default: // told already
			}
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// TestAnswerIsLost: entries that Redis gave to this relay, in an answer that never came in, are relayed as soon as Redis
// answers. Their idle time is kept at zero meanwhile, so that a takeover cannot be what brings them.
func TestAnswerIsLost(t *testing.T) {
	t.Parallel()
	for what, reader := range map[string]string{"of new entries": "", "of a takeover": "dead"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			server, prefix := testkit.Shared(t)
			front := newCutter(t, server.Addr)
			r := newRelayRig(t, server, prefix, front.addr, 1)
			ctx := t.Context()
			keepYoung := func(consumer string, idle int) {
				for _, m := range r.raw.XRange(ctx, r.outbox(0), "-", "+").Val() {
					if err := r.raw.Do(ctx, "XCLAIM", r.outbox(0), relayGroup, consumer, 0, m.ID, "IDLE", idle, "JUSTID").Err(); err != nil {
						t.Fatal(err)
					}
				}
			}
			pendingOf := func(consumer string) int {
				rows, _ := r.raw.XPendingExt(ctx, &redis.XPendingExtArgs{Stream: r.outbox(0), Group: relayGroup, Start: "-", End: "+", Count: 10, Consumer: consumer}).Result()
				return len(rows)
			}
			r.run()
			r.beat("before", 0)
			r.until("it relays", func() bool { return r.waiting(0) == 0 })
			r.until("it is at rest", func() bool { return r.slots() == 0 && len(r.relay.lanes[0].bells[0]) == 0 })
			if reader != "" {
				r.online("after", 0)
				if got, err := r.store.Outbox(reader).Next(ctx, 0, 10); len(got) != 1 || err != nil {
					t.Fatal(got, err)
				}
				keepYoung(reader, 60_000)
			}
			lose := "user.online"
			front.lose.Store(&lose)
			if reader == "" {
				r.beat("after", 0)
			}
			r.until("the answer is lost", func() bool {
				r.relay.wake(0) // the takeover is not looked for each time
				return len(front.lost) == 1
			})
			r.until("the fault is told", func() bool { _, fault := r.relay.progress(); return fault != "" })
			if n := pendingOf("one"); n != 1 {
				t.Fatalf("%d entries are its own, want 1", n)
			}
			front.lose.Store(nil)
			r.until("they are relayed", func() bool {
				keepYoung("one", 0)
				return r.waiting(0) == 0
			})
			r.once(2)
		})
	}
}

const relayGroup = "relay"

// TestQueueOfARouteRests: after each rest one partition tries it, until it is forgotten.
func TestQueueOfARouteRests(t *testing.T) {
	t.Parallel()
	r := NewRelay(nil, 1, nil, nil, queue.Codec{}, queue.Destinations{}, slog.New(slog.DiscardHandler))
	ctx := t.Context()
	rest := func(want ...bool) {
		t.Helper()
		for i, w := range want {
			if r.resting("carts") != w {
				t.Errorf("look %d: resting is %v", i+1, !w)
			}
		}
	}
	failedAgo := func(d time.Duration) {
		r.noteRoute(ctx, "carts", errors.New("away"))
		r.failing["carts"] = failure{time.Now().Add(-d), "away"}
	}
	rest(false, false)
	failedAgo(0)
	rest(true, true)
	failedAgo(routeRest)
	rest(false, true, true)
	failedAgo(routeMemory)
	rest(false, false)
	failedAgo(0)
	r.noteRoute(ctx, "carts", nil)
	rest(false)
}

// TestLargestEvents says what the comment at send relies on.
func TestLargestEvents(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("~", presence.MaxIDLength)
	far := time.Date(9999, 12, 31, 23, 59, 59, 999e6, time.UTC)
	meta := json.RawMessage(`{"":"` + strings.Repeat("<", presence.MaxMetaBytes-7) + `"}`) // JSON of Go has 6 bytes for one
	user := presence.Event{
		ID: presence.EventID(id, id, presence.SessionStarted, 1<<62), Type: presence.SessionStarted, Subject: presence.Subject{User: id, Session: id},
		Body: presence.Body{
			Epoch: 1 << 62, Reason: presence.ReasonExpired, Deadline: far, DetectedAt: far, LastSeen: far, Meta: meta, Groups: slices.Repeat([]string{id}, presence.MaxGroups), Sessions: slices.Repeat([]presence.EventSession{{Session: id, StartEpoch: 1 << 62, TTLSeconds: 3600, GraceSeconds: 600}}, presence.MaxSessions),
			Life: "ABCDEFGHIJ", Generation: 1 << 62,
		},
	}
	user.Traceparent = presence.TraceparentOf(user.ID)
	text := strings.Repeat("\x01", redisstore.MaxForeignKey)
	key := presence.Event{
		ID: presence.KeyEventID(text, 1<<62, 1<<62), Type: presence.KeyExpired, Subject: presence.Subject{Key: text},
		Body:        presence.Body{Epoch: 1 << 62, Reason: presence.ReasonExpired, DetectedAt: far, Life: user.Life, Generation: 1 << 62},
		Traceparent: user.Traceparent,
	}
	codec := queue.Codec{Source: "/" + strings.Repeat("a", 60), TypePrefix: strings.Repeat("p", 100)}
	for name, e := range map[string]presence.Event{"of a user": user, "of a key": key} {
		m, err := codec.Encode(e, 0)
		if err != nil {
			t.Fatal(err)
		}
		size := len(m.Body) + len(m.ID) + len(m.Subject) + len(m.SessionID) + len(m.ContentType)
		for property, value := range m.Properties {
			size += len(property) + len(fmt.Sprint(value))
		}
		t.Logf("the largest event %s has %d bytes", name, size)
		if size > 20<<10 {
			t.Errorf("the largest event %s has %d bytes", name, size)
		}
	}
}
