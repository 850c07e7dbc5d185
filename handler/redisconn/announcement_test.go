package redisconn

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/maintenance"
)

// announcer is a server in front of a real one that has maintenance notifications, which no Redis has that runs
// everywhere: it answers the question for them, and sends them when told to, between two answers.
type announcer struct {
	listener net.Listener
	to       string
	wait     sync.WaitGroup

	mu    sync.Mutex
	conns map[*announcing]struct{}
	asked [][]string // the questions, by the connections that asked
}

// announcing is one of its connections.
type announcing struct {
	client, server net.Conn
	mu             sync.Mutex // one answer or notification at a time
	asked          bool
	subscribes     bool
}

func newAnnouncer(t *testing.T, to string) *announcer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := &announcer{listener: l, to: to, conns: map[*announcing]struct{}{}}
	a.wait.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			a.wait.Go(func() { a.serve(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		a.hangUp()
		a.wait.Wait()
	})
	return a
}

func (a *announcer) addr() string { return a.listener.Addr().String() }

func (a *announcer) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", a.to)
	if err != nil {
		return
	}
	defer server.Close()
	c := &announcing{client: client, server: server}
	a.mu.Lock()
	a.conns[c] = struct{}{}
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.conns, c)
	}()
	var answers sync.WaitGroup
	defer answers.Wait()
	defer server.Close()
	answers.Go(func() {
		defer client.Close()
		for in := bufio.NewReader(server); ; {
			var answer strings.Builder
			if copyReply(in, &answer) != nil || c.write(answer.String()) != nil {
				return
			}
		}
	})
	for in := bufio.NewReader(client); ; {
		args, err := readCommand(in)
		if err != nil {
			return
		}
		if len(args) > 2 && strings.EqualFold(args[0]+" "+args[1], "client maint_notifications") {
			a.mu.Lock()
			a.asked = append(a.asked, args)
			c.asked = true
			a.mu.Unlock()
			if c.write("+OK\r\n") != nil {
				return
			}
			continue
		}
		if strings.HasSuffix(strings.ToLower(args[0]), "subscribe") {
			a.mu.Lock()
			c.subscribes = true
			a.mu.Unlock()
		}
		command := fmt.Sprintf("*%d\r\n", len(args))
		for _, arg := range args {
			command += fmt.Sprintf("$%d\r\n%s\r\n", len(arg), arg)
		}
		if _, err := io.WriteString(server, command); err != nil {
			return
		}
	}
}

func (c *announcing) write(text string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := io.WriteString(c.client, text)
	return err
}

// copyReply reads one answer of a server.
func copyReply(in *bufio.Reader, out *strings.Builder) error {
	line, err := in.ReadString('\n')
	if err != nil {
		return err
	}
	out.WriteString(line)
	n, _ := strconv.Atoi(strings.TrimSpace(line[1:]))
	switch line[0] {
	case '$', '=', '!':
		if n < 0 {
			return nil
		}
		_, err := io.CopyN(out, in, int64(n)+2)
		return err
	case '%', '|':
		n *= 2
		fallthrough
	case '*', '~', '>':
		for range n {
			if err := copyReply(in, out); err != nil {
				return err
			}
		}
	}
	return nil
}

// announce sends a notification on the connections that asked for them, and returns on how many.
func (a *announcer) announce(parts ...any) (n int) {
	text := fmt.Sprintf(">%d\r\n", len(parts))
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			text += fmt.Sprintf("$%d\r\n%s\r\n", len(p), p)
		case int:
			text += fmt.Sprintf(":%d\r\n", p)
		case nil:
			text += "_\r\n"
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.conns {
		if c.asked && c.write(text) == nil {
			n++
		}
	}
	return n
}

// hangUp cuts all connections.
func (a *announcer) hangUp() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.conns {
		_ = c.client.Close()
		_ = c.server.Close()
	}
}

// questions returns what was asked on connections, and fails the test for one on a subscription.
func (a *announcer) questions(t *testing.T) [][]string {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for c := range a.conns {
		if c.asked && c.subscribes {
			t.Error("notifications were asked for on a subscription")
		}
	}
	return slices.Clone(a.asked)
}

// circuits runs a real Set until the test ends.
func circuits(t *testing.T, client **Client) *maintenance.Set {
	t.Helper()
	set := maintenance.NewSet(maintenance.SetConfig{Log: slog.New(slog.DiscardHandler), Ping: func(ctx context.Context, node string) error {
		return (*client).Ping(ctx, node)
	}})
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { set.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	return set
}

// announcedBench is a countStore on a server with notifications.
type announcedBench struct {
	t     *testing.T
	front *announcer
	raw   *redis.Client
	real  *testkit.Redis
	set   *maintenance.Set
	store *countStore
}

func newAnnouncedBench(t *testing.T) *announcedBench {
	t.Helper()
	b := &announcedBench{t: t, real: testkit.Start(t)}
	b.raw, b.front = rawClient(t, b.real), newAnnouncer(t, b.real.Addr)
	var client *Client
	b.set = circuits(t, &client)
	client = NewClient(Endpoint{URL: "redis://" + b.front.addr()}, "test", b.set)
	t.Cleanup(func() { _ = client.Close() })
	b.store = newCountStore(client, 2)
	t.Cleanup(b.store.close)
	listen(t, client, 1)
	if err := b.beat(); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *announcedBench) beat() error {
	_, err := b.store.add(b.t.Context(), "u")
	return err
}

// expect waits until the breaker is as it should be.
func (b *announcedBench) expect(what string, open bool) {
	b.t.Helper()
	testkit.Eventually(b.t, what, func(context.Context, *redis.Client) (bool, error) {
		_, is := b.set.Open("")
		return is == open, errors.New(b.set.State().Reason)
	}, b.real)
	if err := b.beat(); errors.Is(err, errCircuitOpen) != open || !open && err != nil {
		b.t.Fatalf("%s: %v", what, err)
	}
}

// alone fails the test when there are more connections than one for commands and the subscription.
func (b *announcedBench) alone() {
	b.t.Helper()
	if found := mustConnections(b.t, b.raw); len(found) > 2 {
		b.t.Errorf("connections: %+v", found)
	}
}

// TestAMove: the server moves elsewhere and hangs up.
func TestAMove(t *testing.T) {
	t.Parallel()
	b := newAnnouncedBench(t)
	b.front.announce("MOVING", 8, 0, nil)
	_ = b.beat() // the notification is read with its answer
	b.expect("open for a move", true)
	b.front.hangUp()
	b.expect("closed after the move", false)
	b.alone()
	if n := len(b.front.questions(t)); n < 2 {
		t.Errorf("asked on %d connections", n)
	}
}

// TestAnnouncements: what Redis says itself of its maintenance opens the breaker and closes it, over the one connection
// for commands, with answers neither lost nor mixed up.
func TestAnnouncements(t *testing.T) {
	t.Parallel()
	b := newAnnouncedBench(t)
	front, set, beat, store := b.front, b.set, b.beat, b.store
	asked := front.questions(t)
	if len(asked) != 1 || strings.Join(asked[0][2:], " ") != "on moving-endpoint-type none" {
		t.Fatalf("asked: %q", asked)
	}

	// Nothing follows from these.
	for _, parts := range [][]any{
		{"SMIGRATING", 1, "1-5"},
		{"SMIGRATED", 2, "1-5"},
		{"MIGRATED", 3},
		{"invalidate", nil},
		{"MOVING", 4, "soon"},
		{"FAILING_OVER", 5, -1},
		{"NodeMaintenanceStart"},
		{},
	} {
		if n := front.announce(parts...); n != 1 {
			t.Fatalf("%v was sent on %d connections", parts, n)
		}
		if err := beat(); err != nil {
			t.Fatalf("after %v: %v", parts, err)
		}
	}
	if state := set.State(); state.Opened != 0 || state.Counts[maintenance.SMigrated] != 1 || state.Events[0].RawType != "FAILING_OVER" {
		t.Fatalf("state %+v", state)
	}

	front.announce("FAILING_OVER", 6, 0)
	_ = beat()
	b.expect("open for a failover", true)
	front.announce("FAILED_OVER", 7)
	b.expect("closed after the failover", false)
	b.alone()

	// Many notifications among many answers.
	names := make([]string, 50)
	for i := range names {
		names[i] = fmt.Sprint("many", i)
	}
	for round := range 50 {
		var running sync.WaitGroup
		running.Go(func() {
			for n := range 20 {
				front.announce("SMIGRATED", 100*round+n, "1-5")
			}
		})
		out, err := store.add(t.Context(), names...)
		running.Wait()
		if err != nil {
			t.Fatal(err)
		}
		for i, o := range out {
			if o != int64(round)+1 {
				t.Fatalf("round %d: name %d was counted %d times", round, i, o)
			}
		}
	}
	b.alone()
	if state := set.State(); state.Opened != 1 {
		t.Errorf("opened %d times, for %s", state.Opened, state.Reason)
	}
}

func TestUnannounced(t *testing.T) {
	t.Parallel()
	front := newAnnouncer(t, testkit.Start(t).Addr)
	client := NewClient(Endpoint{URL: "redis://" + front.addr(), Unannounced: true}, "test", nil)
	defer client.Close()
	if err := client.Ping(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if asked := front.questions(t); len(asked) != 0 {
		t.Errorf("asked: %q", asked)
	}
}

// TestAnnouncementsOfANode: on a cluster what a node announces is about that node.
func TestAnnouncementsOfANode(t *testing.T) {
	t.Parallel()
	c := testkit.StartCluster(t, 3, 0)
	fronts := map[string]*announcer{}
	for _, primary := range c.Primaries {
		host, port, _ := net.SplitHostPort(primary.Addr)
		front := newAnnouncer(t, primary.Addr)
		_, frontPort, _ := net.SplitHostPort(front.addr())
		own, _ := strconv.Atoi(port)
		raw := rawClient(t, primary)
		for setting, value := range map[string]string{"cluster-announce-bus-port": strconv.Itoa(own + 10000), "cluster-announce-port": frontPort} {
			if err := raw.ConfigSet(t.Context(), setting, value).Err(); err != nil {
				t.Fatal(err)
			}
		}
		fronts[net.JoinHostPort(host, frontPort)] = front
	}
	for _, primary := range c.Primaries {
		testkit.Eventually(t, "all nodes know where the others are", func(ctx context.Context, raw *redis.Client) (bool, error) {
			//lint:ignore SA1019 CLUSTER SHARDS needs Redis 7, and 6.2 is supported
			slots, err := raw.ClusterSlots(ctx).Result()
			for _, s := range slots {
				if fronts[s.Nodes[0].Addr] == nil {
					return false, err
				}
			}
			return len(slots) == 3, err
		}, primary)
	}
	var client *Client
	set := circuits(t, &client)
	client = NewClient(endpointOf(c), "test", set)
	defer client.Close()
	store := newCountStore(client, 16)
	defer store.close()
	names := store.names()
	if _, err := store.add(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
	for node, front := range fronts {
		if n := front.announce("FAILING_OVER", 1, 0); n != 1 {
			t.Fatalf("%s announced on %d connections", node, n)
		}
		_, _ = store.add(t.Context(), names...)
		testkit.Eventually(t, "open", func(context.Context, *redis.Client) (bool, error) {
			_, open := set.Open(node)
			return open, nil
		}, c.Primaries[0])
		refused := 0
		for _, name := range names {
			_, err := store.add(t.Context(), name)
			after, away := time.Duration(0), false
			if tell := client.Away(); tell != nil {
				after, away = tell(store.key(name))
			}
			if away != errors.Is(err, errCircuitOpen) || !away && err != nil || away && after < time.Second {
				t.Errorf("%s: away %v for %v, %v", name, away, after, err)
			}
			if err != nil {
				refused++
			}
		}
		state := set.State()
		for other, s := range state.Nodes {
			if (s.Status == maintenance.Open) != (other == node) {
				t.Errorf("%s is %s after %s announced", other, s.Status, node)
			}
		}
		if refused == 0 || refused == len(names) || len(state.Nodes) != 3 {
			t.Errorf("%d of %d calls refused, nodes %+v", refused, len(names), state.Nodes)
		}
		front.announce("FAILED_OVER", 2)
		testkit.Eventually(t, "closed", func(context.Context, *redis.Client) (bool, error) { return !set.AnyOpen(), nil }, c.Primaries[0])
		if client.Away() != nil {
			t.Error("somebody is away")
		}
	}
	if _, n, _ := client.Server(); n != 1 {
		t.Errorf("%d connections to a primary", n)
	}
}
