package redisconn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
)

// connection is one line of CLIENT LIST.
type connection struct{ id, name, flags, cmd string }

// connectionsOf returns the connections of a server that its clients have, those of the tests' own tools apart. A server
// may see a new connection before it sees that the old one was closed, so one counts that two looks find.
func connectionsOf(ctx context.Context, raw *redis.Client) ([]connection, error) {
	first, err := lookAtConnections(ctx, raw)
	if err != nil {
		return nil, err
	}
	second, err := lookAtConnections(ctx, raw)
	return slices.DeleteFunc(second, func(c connection) bool {
		return !slices.ContainsFunc(first, func(other connection) bool { return other.id == c.id })
	}), err
}

func lookAtConnections(ctx context.Context, raw *redis.Client) ([]connection, error) {
	list, err := raw.ClientList(ctx).Result()
	if err != nil {
		return nil, err
	}
	var found []connection
	for line := range strings.Lines(list) {
		var c connection
		for _, field := range strings.Fields(line) {
			switch k, v, _ := strings.Cut(field, "="); k {
			case "id":
				c.id = v
			case "name":
				c.name = v
			case "flags":
				c.flags = v
			case "cmd":
				c.cmd = v
			}
		}
		if c.name != "testkit" && !strings.ContainsAny(c.flags, "MS") {
			found = append(found, c)
		}
	}
	return found, nil
}

// rawClient is a client beside the one under test.
func rawClient(t *testing.T, server *testkit.Redis) *redis.Client {
	t.Helper()
	raw := server.Client()
	t.Cleanup(func() { _ = raw.Close() })
	return raw
}

func mustConnections(t *testing.T, raw *redis.Client) []connection {
	t.Helper()
	found, err := connectionsOf(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// gate is a TCP server in front of another. It counts connections, and can hold them up or cut them.
type gate struct {
	listener net.Listener
	to       string
	count    atomic.Int64
	open     chan struct{} // closed when bytes may pass
	wait     sync.WaitGroup
}

// newGate returns a gate in front of addr; bytes pass once open is closed. With addr "" it hangs up then.
func newGate(t *testing.T, addr string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{listener: l, to: addr, open: make(chan struct{})}
	g.wait.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.count.Add(1)
			g.wait.Go(func() { g.pass(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		g.wait.Wait()
	})
	return g
}

func (g *gate) pass(conn net.Conn) {
	defer conn.Close()
	<-g.open
	if g.to == "" {
		return
	}
	to, err := net.Dial("tcp", g.to)
	if err != nil {
		return
	}
	defer to.Close()
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{conn, to}, {to, conn}} {
		both.Go(func() {
			defer pair[0].Close()
			defer pair[1].Close()
			buf := make([]byte, 64<<10)
			for {
				n, err := pair[0].Read(buf)
				if n > 0 {
					if _, err := pair[1].Write(buf[:n]); err != nil {
						return
					}
				}
				if err != nil {
					return
				}
			}
		})
	}
	both.Wait()
}

const firstCallers = 10_000

// atOnce has many callers make their first call at the same time, and returns their errors. begun is called when all
// have been started.
func atOnce(t *testing.T, begun func(), call func() error) []error {
	t.Helper()
	errs := make([]error, firstCallers)
	var ready, done sync.WaitGroup
	ready.Add(firstCallers)
	start := make(chan struct{})
	for i := range errs {
		done.Go(func() {
			ready.Done()
			<-start
			errs[i] = call()
		})
	}
	ready.Wait()
	close(start)
	begun()
	done.Wait()
	return errs
}

func TestClientIsCreatedOnce(t *testing.T) {
	server := testkit.Start(t)
	raw := rawClient(t, server)
	g := newGate(t, server.Addr)
	client := NewClient(Endpoint{URL: "redis://" + g.listener.Addr().String()}, "app/instance one", nil)
	t.Cleanup(func() { _ = client.Close() }) // before that of the gate, which waits for its connections
	store := newCountStore(client, 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i, err := range atOnce(t, func() { close(g.open) }, func() error { return store.ping(ctx) }) {
		if err != nil {
			t.Fatalf("caller %d: %v", i, err)
		}
	}
	if n := g.count.Load(); n != 1 {
		t.Errorf("%d connections were opened for %d first calls", n, firstCallers)
	}
	if found := mustConnections(t, raw); len(found) != 1 || found[0].name != "app/instance-one" {
		t.Errorf("connections: %+v", found)
	}
	if _, n, ok := client.Server(); !ok || n != 1 {
		t.Errorf("the client says that it has %d connections (%v)", n, ok)
	}
	store.close()
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := store.ping(ctx); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("after Close: %v", err)
	}
	testkit.Eventually(t, "nothing is left", func(ctx context.Context, raw *redis.Client) (bool, error) {
		found, err := connectionsOf(ctx, raw)
		return len(found) == 0, err
	}, server)
	if n := g.count.Load(); n != 1 {
		t.Errorf("a call after Close opened a connection: %d", n)
	}
}

func TestCallersAtOnceShareAFailedAttempt(t *testing.T) {
	g := newGate(t, "")
	store := newCountStore(NewClient(Endpoint{URL: "redis://" + g.listener.Addr().String()}, "test", nil), 1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i, err := range atOnce(t, func() { close(g.open) }, func() error { return store.ping(ctx) }) {
		if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "a TLS port needs rediss://") {
			t.Fatalf("caller %d: %v", i, err)
		}
	}
	// Whoever comes after the fault tries again, so there may be more than one.
	t.Logf("%d dials for %d callers", g.count.Load(), firstCallers)
	if n := g.count.Load(); n > firstCallers/10 {
		t.Errorf("%d dials for %d callers", n, firstCallers)
	}
}

func TestAFailedAttemptIsNotRemembered(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
	defer client.Close()
	store := newCountStore(client, 1)
	server.Stop()
	for range 3 {
		if err := store.ping(t.Context()); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "nothing listens") {
			t.Fatal(err)
		}
	}
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	if err := store.ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The same holds for a client that was connected before.
	server.Stop()
	for range 3 {
		if err := store.ping(t.Context()); fault.KindOf(err) != fault.Unavailable {
			t.Fatal(err)
		}
	}
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	if err := store.ping(t.Context()); err != nil {
		t.Fatal("the first call after the server is back: ", err)
	}
}

func TestACallEndsWithItsContextWhileTheFirstAttemptIsUnderWay(t *testing.T) {
	t.Parallel()
	g := newGate(t, "")
	defer close(g.open)
	client := NewClient(Endpoint{URL: "redis://" + g.listener.Addr().String()}, "test", nil)
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	began := time.Now()
	if _, err := client.Connect(ctx); !errors.Is(err, context.DeadlineExceeded) || fault.KindOf(err) != fault.Unavailable {
		t.Fatal(err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("a call with 50 ms took %v", took)
	}
}

// TestABrokenClientIsReplaced: one whose round trips all fail is closed, and a new one made, without a leak.
func TestABrokenClientIsReplaced(t *testing.T) {
	server := testkit.Start(t)
	raw := rawClient(t, server)
	leaks := goleak.IgnoreCurrent()
	client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
	client.replaceAfter = 10 * time.Millisecond
	store := newCountStore(client, 1)
	if err := store.ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	first := client.live.Load()
	server.Stop()
	for client.live.Load() == first { // the test's own time limit ends this
		if err := store.ping(t.Context()); fault.KindOf(err) != fault.Unavailable {
			t.Fatal(err)
		}
	}
	if !errors.Is(first.Ping(t.Context()).Err(), redis.ErrClosed) {
		t.Error("the replaced client is not closed")
	}
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	if err := store.ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := mustConnections(t, raw); len(found) != 1 {
		t.Errorf("connections: %+v", found)
	}
	// The breaker's probe alone replaces it too.
	second := client.live.Load()
	server.Pause()
	for client.live.Load() == second {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := client.Ping(ctx, ""); err == nil {
			t.Fatal("a paused server answered")
		}
		cancel()
	}
	server.Resume()
	if err := client.Ping(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	store.close()
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := goleak.Find(leaks); err != nil {
		t.Error(err)
	}
}

// circuit is a Circuit that counts.
type circuit struct {
	noCircuit
	open                    atomic.Bool
	failed, lost, succeeded atomic.Int64
	last                    atomic.Value
}

func (c *circuit) Open(string) (time.Duration, bool) { return 0, c.open.Load() }
func (c *circuit) Failed(_ string, err error) {
	c.failed.Add(1)
	c.last.Store(fmt.Sprint(err))
}
func (c *circuit) Lost(string)      { c.lost.Add(1) }
func (c *circuit) Succeeded(string) { c.succeeded.Add(1) }

func TestCircuit(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	watch := &circuit{}
	client := NewClient(Endpoint{URL: server.URL()}, "test", watch)
	defer client.Close()
	store := newCountStore(client, 1)
	defer store.close()
	calls := map[string]func(context.Context) error{
		"one": func(ctx context.Context) error {
			_, err := store.add(ctx, "u")
			return err
		},
		"many": func(ctx context.Context) error {
			_, err := store.add(ctx, "u", "u")
			return err
		},
		"transaction": store.transact,
		"read":        func(ctx context.Context) error { _, err := store.read(ctx, "u"); return err },
		"look":        store.look,
		"command":     store.command,
		"ping":        store.ping,
	}
	for name, call := range calls {
		before := watch.succeeded.Load()
		if err := call(t.Context()); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if watch.succeeded.Load() == before || watch.failed.Load() != 0 {
			t.Errorf("%s: its success was not told, or a failure was: %v", name, watch.last.Load())
		}
	}
	watch.open.Store(true)
	for name, call := range calls {
		if err := call(t.Context()); !errors.Is(err, errCircuitOpen) || fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s while the circuit is open: %v", name, err)
		}
	}
	if err := client.Ping(t.Context(), ""); err != nil {
		t.Errorf("the probe while the circuit is open: %v", err)
	}
	watch.open.Store(false)

	server.Pause()
	for name, call := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := call(ctx); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s on a stalled Redis: %v", name, err)
		}
		cancel()
	}
	server.Resume()
	if err := store.ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Kill()
	for name, call := range calls {
		before := watch.failed.Load()
		if err := call(t.Context()); fault.KindOf(err) != fault.Unavailable {
			t.Errorf("%s without Redis: %v", name, err)
		}
		if watch.failed.Load() == before {
			t.Errorf("%s: its failure was not told", name)
		}
	}
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	for name, call := range calls {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s after the server is back: %v", name, err)
		}
	}
}

// TestConnectionsUnderLoad: a process has one connection for commands and one for its subscription, under load and
// while every connection is cut again and again. Nothing but Unavailable comes of that, and beats go on.
func TestConnectionsUnderLoad(t *testing.T) {
	server := testkit.Start(t)
	raw := rawClient(t, server)
	leaks := goleak.IgnoreCurrent()
	client := NewClient(Endpoint{URL: server.URL()}, "app/1", nil)
	store := newCountStore(client, 4)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	var running errgroup.Group
	var beats, refused atomic.Int64
	stop := make(chan struct{})
	beatOn := func(n int) error {
		user := fmt.Sprintf("user-%d", n)
		last, perhaps := int64(0), false
		for {
			select {
			case <-stop:
				return nil
			default:
			}
			out, err := store.add(ctx, user)
			switch {
			case fault.KindOf(err) == fault.Unavailable:
				refused.Add(1)
				perhaps = true // it may have been applied
				continue
			case err != nil:
				return fmt.Errorf("%s: %w", user, err)
			case out[0] == last+1, out[0] > last && perhaps:
			default:
				return fmt.Errorf("%s, counted %d times before, perhaps more: %v: now %d", user, last, perhaps, out[0])
			}
			last, perhaps = out[0], false
			beats.Add(1)
		}
	}
	for n := range 64 {
		running.Go(func() error { return beatOn(n) })
	}
	most, over := 0, 0
	sample := func() []connection {
		found := mustConnections(t, raw)
		most = max(most, len(found))
		if len(found) > 2 {
			over++
			t.Logf("connections: %+v", found)
		}
		return found
	}
	for range 200 {
		if found := sample(); len(found) > 1 {
			t.Fatalf("without a subscription: %+v", found)
		}
	}
	listening, hangUp := context.WithCancel(ctx)
	stands := make(chan struct{}, 1)
	var losses atomic.Int64
	running.Go(func() error {
		client.Subscribe(listening, Subscriber{Expired: func(string) {}, Maintenance: func(string) {}, Subscribed: func() {
			select {
			case stands <- struct{}{}:
			default:
			}
		}}, func(error) { losses.Add(1) })
		return nil
	})
	<-stands
	quietly := beats.Load()
	for range 200 {
		sample()
	}
	if refused.Load() != 0 {
		t.Errorf("%d beats were refused while nothing was wrong", refused.Load())
	}
	cuts := 0
	for cuts < 1000 {
		for _, c := range sample() {
			if raw.Do(ctx, "client", "kill", "id", c.id).Val() == int64(1) {
				cuts++
			}
		}
	}
	cut := beats.Load()
	testkit.Eventually(t, "beats go on", func(context.Context, *redis.Client) (bool, error) { return beats.Load() > cut+1000, nil }, server)
	for range 200 {
		sample()
	}
	close(stop)
	hangUp()
	if err := running.Wait(); err != nil {
		t.Error(err)
	}
	if most > 2 {
		t.Errorf("up to %d connections, %d times more than 2", most, over)
	}
	t.Logf("%d beats undisturbed, %d with %d connections cut, %d refused, the subscription lost %d times; at most %d connections",
		quietly, cut-quietly, cuts, refused.Load(), losses.Load(), most)
	store.close()
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := goleak.Find(leaks); err != nil {
		t.Error(err)
	}
}

// TestReconnectStorm: many processes, fewer connections than they want, then just enough, then all cut at once.
func TestReconnectStorm(t *testing.T) {
	const processes = 60
	server := testkit.Start(t, "--maxclients", "50")
	raw := rawClient(t, server)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var stores []*countStore
	var running errgroup.Group
	defer running.Wait()
	listening, hangUp := context.WithCancel(ctx)
	defer hangUp()
	subscribed := make([]atomic.Int64, processes)
	if err := raw.Ping(ctx).Err(); err != nil {
		t.Fatal(err) // its connection comes before theirs
	}
	for p := range processes {
		client := NewClient(Endpoint{URL: server.URL()}, fmt.Sprintf("app/%d", p), nil)
		defer client.Close()
		store := newCountStore(client, 1)
		defer store.close()
		stores = append(stores, store)
	}
	beatAll := func() (refused int) {
		errs := make([]error, processes)
		var wait sync.WaitGroup
		for p, store := range stores {
			wait.Go(func() {
				_, errs[p] = store.add(ctx, fmt.Sprint(p))
			})
		}
		wait.Wait()
		for p, err := range errs {
			if err == nil {
				continue
			}
			refused++
			if fault.KindOf(err) != fault.Unavailable {
				t.Fatalf("process %d: %v", p, err)
			}
			errs[p] = err
		}
		return refused
	}
	if n := beatAll(); n != processes-49 {
		t.Errorf("%d processes were refused, want %d", n, processes-49)
	}
	for _, store := range stores {
		if err := store.ping(ctx); err != nil && !strings.Contains(err.Error(), "lower MAX_INSTANCES") {
			t.Errorf("without a connection left: %v", err)
		}
	}
	if err := raw.ConfigSet(ctx, "maxclients", fmt.Sprint(2*processes+1)).Err(); err != nil {
		t.Fatal(err)
	}
	if n := beatAll(); n != 0 {
		t.Fatalf("%d processes are refused with room for all", n)
	}
	for p, store := range stores {
		running.Go(func() error {
			store.client.Subscribe(listening, Subscriber{Expired: func(string) {}, Subscribed: func() { subscribed[p].Add(1) }}, func(error) {})
			return nil
		})
	}
	allSubscribed := func(more int64) {
		t.Helper()
		testkit.Eventually(t, "every process has its subscription", func(context.Context, *redis.Client) (bool, error) {
			for p := range subscribed {
				if subscribed[p].Load() < more {
					return false, fmt.Errorf("process %d has not", p)
				}
			}
			return true, nil
		}, server)
	}
	allSubscribed(1)
	refused := 0
	for round := range 10 {
		for p := range subscribed {
			subscribed[p].Store(0)
		}
		for _, kind := range []string{"normal", "pubsub"} {
			if err := raw.Do(ctx, "client", "kill", "type", kind, "skipme", "yes").Err(); err != nil {
				t.Fatal(err)
			}
		}
		refused += beatAll()
		if found := mustConnections(t, raw); len(found) > 2*processes {
			t.Errorf("round %d: %d connections of %d processes", round, len(found), processes)
		}
		allSubscribed(1)
		if n := beatAll(); n != 0 {
			t.Errorf("round %d: %d processes did not recover", round, n)
		}
	}
	t.Logf("%d of %d beats were refused while all connections were cut", refused, 10*processes)
}

// TestAStalledRedis: calls end with their contexts, nothing piles up, what was given up is not sent, and it serves
// again at once.
func TestAStalledRedis(t *testing.T) {
	server := testkit.Start(t)
	raw := rawClient(t, server)
	leaks := goleak.IgnoreCurrent()
	client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
	store := newCountStore(client, 1)
	beat := func(ctx context.Context, user string) error {
		_, err := store.add(ctx, user)
		return err
	}
	flushes := make(chan struct{}, 100)
	flush := store.lane.flush
	store.lane.flush = func(items []*countItem) {
		flushes <- struct{}{}
		flush(items)
	}
	if err := beat(t.Context(), "before"); err != nil {
		t.Fatal(err)
	}
	<-flushes
	goroutines := runtime.NumGoroutine()
	server.Pause()
	defer server.Resume()
	// One flush is on its way to Redis and stuck there.
	stuck, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	flushed := make(chan error, 1)
	go func() { flushed <- beat(stuck, "stuck") }()
	<-flushes
	var slowest time.Duration
	var mu sync.Mutex
	calls := map[string]func(context.Context) error{
		"a beat": func(ctx context.Context) error { return beat(ctx, "given up") },
		"beats": func(ctx context.Context) error {
			_, err := store.add(ctx, "given up", "given up")
			return err
		},
		"transaction": store.transact,
		"read":        func(ctx context.Context) error { _, err := store.read(ctx, "u"); return err },
		"look":        store.look,
		"command":     store.command,
		"ping":        func(ctx context.Context) error { return client.Ping(ctx, "") },
	}
	var wait sync.WaitGroup
	for name, call := range calls {
		for range 20 {
			wait.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				began := time.Now()
				if err := call(ctx); err == nil {
					t.Errorf("%s: no error of a stalled Redis", name)
				}
				took := time.Since(began)
				mu.Lock()
				slowest = max(slowest, took)
				mu.Unlock()
				if took > time.Second {
					t.Errorf("%s with 50 ms took %v", name, took)
				}
			})
		}
	}
	wait.Wait()
	// When no more fits, the answer comes at once.
	full := 0
	given, giveUp := context.WithCancel(t.Context())
	for range 2 * laneQueue {
		wait.Go(func() {
			err := beat(given, "filler") // may still be sent, if the stuck call runs out of its time first
			mu.Lock()
			defer mu.Unlock()
			if errors.Is(err, errQueueFull) {
				full++
			}
		})
	}
	for {
		mu.Lock()
		n := full
		mu.Unlock()
		if n > 0 {
			break
		}
		runtime.Gosched()
	}
	giveUp()
	wait.Wait()
	t.Logf("slowest call with 50 ms: %v; %d of %d refused at once; %d goroutines before, %d now", slowest, full, 2*laneQueue, goroutines, runtime.NumGoroutine())
	if n := runtime.NumGoroutine(); n > goroutines+50 {
		t.Errorf("%d goroutines while Redis is stalled, %d before", n, goroutines)
	}
	server.Resume()
	resumed := time.Now()
	for beat(t.Context(), "after") != nil { // the test's own time limit ends this
	}
	t.Logf("serves again after %v", time.Since(resumed))
	if err := <-flushed; err != nil && fault.KindOf(err) != fault.Unavailable {
		t.Error(err)
	}
	if n := raw.Exists(t.Context(), store.key("given up")).Val(); n != 0 {
		t.Error("a beat was sent whose request had ended")
	}
	if found := mustConnections(t, raw); len(found) != 1 {
		t.Errorf("connections: %+v", found)
	}
	store.close()
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := goleak.Find(leaks); err != nil {
		t.Error(err)
	}
}

// TestLogTo: the library's own lines go to the log that was chosen, and without one nowhere.
func TestLogTo(t *testing.T) {
	var out bytes.Buffer
	defer LogTo(slog.New(slog.DiscardHandler))
	for level, want := range map[slog.Level]int{slog.LevelInfo: 0, slog.LevelDebug: 1} {
		out.Reset()
		log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: level}))
		LogTo(log)
		lines{log}.Printf(t.Context(), "connection %d is bad", 7)
		if n := strings.Count(out.String(), "go-redis: connection 7 is bad"); n != want {
			t.Errorf("at level %s: %q", level, out.String())
		}
	}
}
