package redisconn

import (
	"context"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/maintenance"
)

// farServer is a TCP server in front of another, whose answers take a while. It can be shut and opened again, and can
// cut a connection in the middle of what comes back.
type farServer struct {
	t        *testing.T
	addr, to string
	delay    atomic.Int64 // of each answer, in ns
	// cutAfter cuts a connection once so many bytes more have come back over it, 0 for never.
	cutAfter atomic.Int64
	mu       sync.Mutex
	listener net.Listener
	conns    map[net.Conn]bool
	running  sync.WaitGroup
}

func newFarServer(t *testing.T, to string) *farServer {
	t.Helper()
	f := &farServer{t: t, addr: "127.0.0.1:0", to: to, conns: map[net.Conn]bool{}}
	f.open()
	t.Cleanup(func() {
		f.shut()
		f.running.Wait()
	})
	return f
}

func (f *farServer) open() {
	f.t.Helper()
	l, err := net.Listen("tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.listener, f.addr = l, l.Addr().String()
	f.running.Go(func() {
		for {
			front, err := l.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", f.to)
			if err != nil {
				_ = front.Close()
				continue
			}
			f.mu.Lock()
			f.conns[front], f.conns[back] = true, true
			f.mu.Unlock()
			f.running.Go(func() {
				_, _ = io.Copy(back, front)
				_ = back.Close()
			})
			f.running.Go(func() { f.answer(front, back) })
		}
	})
}

func (f *farServer) answer(front, back net.Conn) {
	type piece struct {
		text []byte
		due  time.Time
	}
	pieces := make(chan piece, 1024)
	f.running.Go(func() {
		defer close(pieces)
		for {
			buf := make([]byte, 64<<10)
			n, err := back.Read(buf)
			if err != nil {
				return
			}
			pieces <- piece{buf[:n], time.Now().Add(time.Duration(f.delay.Load()))}
		}
	})
	defer front.Close()
	defer back.Close()
	for p := range pieces {
		time.Sleep(time.Until(p.due)) // this is what is tested
		left := f.cutAfter.Load()
		if left > 0 && left < int64(len(p.text)) {
			_, _ = front.Write(p.text[:left])
			f.cutAfter.Store(0)
			_ = front.Close()
			_ = back.Close()
			continue
		}
		_, _ = front.Write(p.text)
	}
}

func (f *farServer) shut() {
	_ = f.listener.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.conns {
		_ = c.Close()
	}
	clear(f.conns)
}

// TestServesAgainOverASlowConnection: however long a new connection takes, a process serves again within twice that
// time after Redis can be reached: with the client that it had, and with one made anew after a long outage. Beats and
// health, which wait for a short time only, change nothing.
func TestServesAgainOverASlowConnection(t *testing.T) {
	t.Parallel()
	type scene struct {
		delay   time.Duration
		replace bool
		secure  bool
	}
	for name, c := range map[string]scene{
		"150 ms":                        {delay: 150 * time.Millisecond},
		"150 ms, TLS":                   {delay: 150 * time.Millisecond, secure: true},
		"150 ms, after a long outage":   {delay: 150 * time.Millisecond, replace: true},
		"500 ms, TLS, a long outage":    {delay: 500 * time.Millisecond, secure: true, replace: true},
		"a second":                      {delay: time.Second},
		"a second, after a long outage": {delay: time.Second, replace: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var server *testkit.Redis
			scheme := "redis://"
			endpoint := Endpoint{}
			if c.secure {
				server, scheme = testkit.StartTLS(t, testkit.Trusted(t), []string{"127.0.0.1"}), "rediss://"
			} else {
				server = testkit.Start(t)
			}
			far := newFarServer(t, server.Addr)
			endpoint.URL = scheme + far.addr
			newProcess := func() (*Client, *countStore, *maintenance.Set) {
				var client *Client
				set := maintenance.NewSet(maintenance.SetConfig{
					Log:   slog.New(slog.DiscardHandler),
					Ping:  func(ctx context.Context, node string) error { return client.Ping(ctx, node) },
					Broke: func(node string) { client.Abandon(node) },
				})
				client = NewClient(endpoint, "far", set)
				store := newCountStore(client, 4)
				ctx, stop := context.WithCancel(t.Context())
				var running sync.WaitGroup
				running.Go(func() { set.Run(ctx) })
				t.Cleanup(func() {
					stop()
					store.close()
					_ = client.Close()
					running.Wait()
				})
				return client, store, set
			}
			beat := func(store *countStore) error {
				ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond+c.delay+c.delay/2)
				defer cancel()
				_, err := store.add(ctx, "u")
				return err
			}
			client, store, set := newProcess()
			for beat(store) != nil { // the test's own time limit ends this
			}
			far.delay.Store(int64(c.delay))
			if c.replace {
				client.replaceAfter = 50 * time.Millisecond
			}
			first := client.live.Load()
			far.shut()
			for down := false; !down || c.replace && client.live.Load() == first; _, down = set.Open("") {
				_ = beat(store)
			}
			far.open()
			began := time.Now()
			fresh, _, _ := newProcess()
			for fresh.Ping(t.Context(), "") != nil {
			}
			connects := time.Since(began)
			far.shut()
			for _, down := set.Open(""); !down; _, down = set.Open("") {
				_ = beat(store)
			}
			far.open()
			began = time.Now()
			for beat(store) != nil {
				_ = store.ping(t.Context())
				<-time.After(5 * time.Millisecond)
			}
			took := time.Since(began)
			t.Logf("answers after %v: a new process connects within %v, serves again within %v (%.2f)",
				c.delay, connects.Round(time.Millisecond), took.Round(time.Millisecond), float64(took)/float64(connects))
		})
	}
}

// TestARefusedGreeting: where a new connection is refused (a rotated key, a user that is gone, a script of somebody
// else that never ends) nothing that Redis did not say is read: every call fails as when Redis is away, and the fault
// has the cure. Then it serves again, over a single server and a cluster.
func TestARefusedGreeting(t *testing.T) {
	t.Parallel()
	const user = "app"
	set := func(words ...string) func(context.Context, *redis.Client) error {
		return func(ctx context.Context, c *redis.Client) error {
			args := []any{"acl", "setuser", user}
			for _, w := range words {
				args = append(args, w)
			}
			return c.Do(ctx, args...).Err()
		}
	}
	allowed := set("reset", "on", ">"+secret, "~*", "&*", "+@all")
	for name, c := range map[string]struct {
		refuse func(context.Context, *redis.Client) error
		want   string
	}{
		"a rotated key":            {set("resetpass", ">another"), "redis refuses the user or password in REDIS_URL"},
		"a user that is off":       {set("off"), "redis refuses the user or password in REDIS_URL"},
		"a user without any right": {refuse: set("-@all")},
	} {
		for _, kind := range []string{"single", "cluster"} {
			t.Run(name+", "+kind, func(t *testing.T) {
				t.Parallel()
				var servers []*redis.Client
				var addr string
				if kind == "single" {
					server := testkit.Start(t)
					servers, addr = []*redis.Client{rawClient(t, server)}, server.Addr
				} else {
					cluster := testkit.StartCluster(t, 3, 0)
					for _, p := range cluster.Primaries {
						servers = append(servers, rawClient(t, p))
					}
					addr = cluster.Primaries[0].Addr
				}
				all := func(do func(context.Context, *redis.Client) error) {
					t.Helper()
					for _, s := range servers {
						if err := do(t.Context(), s); err != nil {
							t.Fatal(err)
						}
					}
				}
				all(allowed)
				var client *Client
				circuit := circuits(t, &client)
				client = NewClient(Endpoint{URL: "redis://" + user + ":" + secret + "@" + addr}, "test", circuit)
				defer client.Close()
				store := newCountStore(client, 4)
				defer store.close()
				names := store.names()
				if _, err := store.add(t.Context(), names...); err != nil {
					t.Fatal(err)
				}
				calls := map[string]func(context.Context) (any, error){
					"read":        func(ctx context.Context) (any, error) { return store.read(ctx, names...) },
					"many":        func(ctx context.Context) (any, error) { return store.add(ctx, names...) },
					"one":         func(ctx context.Context) (any, error) { return store.add(ctx, names[0]) },
					"look":        func(ctx context.Context) (any, error) { return nil, store.look(ctx) },
					"command":     func(ctx context.Context) (any, error) { return nil, store.command(ctx) },
					"transaction": func(ctx context.Context) (any, error) { return nil, store.transact(ctx) },
					"ping":        func(ctx context.Context) (any, error) { return nil, store.ping(ctx) },
				}
				cut := func(ctx context.Context, c *redis.Client) error {
					return c.Do(ctx, "client", "kill", "type", "normal", "skipme", "yes").Err()
				}
				all(c.refuse)
				for name, call := range calls {
					all(cut)
					if found, err := call(t.Context()); fault.KindOf(err) != fault.Unavailable {
						t.Errorf("%s: %v, %v", name, found, err)
					}
				}
				if c.want != "" { // else each command is refused, not the connection
					testkit.Eventually(t, "the circuit opens, and the fault has the cure", func(context.Context, *redis.Client) (bool, error) {
						_, _ = store.read(t.Context(), names...)
						_, open := circuit.Open("")
						fault := client.Fault()
						return open && fault != nil && strings.Contains(fault.Error(), c.want), fault
					}, &testkit.Redis{Addr: addr})
					if err := client.Fault(); strings.Contains(err.Error(), secret) {
						t.Errorf("the fault: %v", err)
					}
				}
				all(allowed)
				testkit.Eventually(t, "it serves again", func(ctx context.Context, _ *redis.Client) (bool, error) {
					_, err := store.add(ctx, names...)
					return err == nil, err
				}, &testkit.Redis{Addr: addr})
				if err := client.Fault(); err != nil {
					t.Errorf("a fault is left: %v", err)
				}
			})
		}
	}
}

// TestABusyServer: a server that runs a script of somebody else, without an end, serves nobody.
func TestABusyServer(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t, "--lua-time-limit", "20")
	t.Cleanup(server.Kill) // a busy server does not end by itself
	raw := rawClient(t, server)
	if err := raw.Ping(t.Context()).Err(); err != nil {
		t.Fatal(err) // a busy server does not greet it later
	}
	var client *Client
	circuit := circuits(t, &client)
	client = NewClient(Endpoint{URL: server.URL()}, "test", circuit)
	defer client.Close()
	store := newCountStore(client, 4)
	defer store.close()
	names := store.names()
	if _, err := store.add(t.Context(), names...); err != nil {
		t.Fatal(err)
	}
	for _, cut := range []bool{false, true} {
		if cut {
			if err := raw.Do(t.Context(), "client", "kill", "type", "normal", "skipme", "yes").Err(); err != nil {
				t.Fatal(err)
			}
		}
		var running sync.WaitGroup
		running.Go(func() {
			other := server.Client()
			defer other.Close()
			_ = other.Eval(t.Context(), "while true do end", nil).Err() // it is killed
		})
		open := func() (bool, error) {
			found, err := store.read(t.Context(), names...)
			for i, n := range found {
				if n == 0 {
					t.Errorf("%s is said to be unknown", names[i])
				}
			}
			_, open := circuit.Open("")
			return open, err
		}
		for is, _ := open(); !is; is, _ = open() { // the test's own time limit ends this
		}
		if err := client.Fault(); err == nil || !strings.Contains(err.Error(), "redis runs a script of another client") {
			t.Errorf("the fault: %v", err)
		}
		if err := raw.ScriptKill(t.Context()).Err(); err != nil {
			t.Fatal(err)
		}
		running.Wait()
		testkit.Eventually(t, "it serves again", func(ctx context.Context, _ *redis.Client) (bool, error) {
			_, err := store.add(ctx, names...)
			return err == nil, err
		}, server)
	}
}

// TestACutPipeline: a pipeline whose answers end in the middle leaves no command that looks as if it was answered.
func TestACutPipeline(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	far := newFarServer(t, server.Addr)
	client := NewClient(Endpoint{URL: "redis://" + far.addr}, "test", nil)
	defer client.Close()
	const commands = 50
	for _, kind := range []string{"pipeline", "transaction"} {
		for cut := int64(1); cut < 400; cut += 7 {
			conn, err := client.Connect(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if err := conn.Set(t.Context(), "key", "value", 0).Err(); err != nil {
				t.Fatal(err)
			}
			pipe := conn.Pipeline()
			if kind == "transaction" {
				pipe = conn.TxPipeline()
			}
			got := make([]*redis.StringCmd, commands)
			for i := range got {
				got[i] = pipe.Get(t.Context(), "key")
			}
			far.cutAfter.Store(cut)
			_, _ = pipe.Exec(t.Context())
			far.cutAfter.Store(0)
			for i, cmd := range got {
				if cmd.Err() == nil && cmd.Val() != "value" {
					t.Fatalf("%s cut after %d bytes: command %d has neither an error nor a value", kind, cut, i)
				}
			}
			if got[commands-1].Err() == nil {
				t.Fatalf("%s cut after %d bytes: the last command has no error", kind, cut)
			}
		}
	}
}

// TestARefusedTransaction: where MULTI is refused the answers to the commands after it are not taken for those of later
// commands.
func TestARefusedTransaction(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	raw := rawClient(t, server)
	if err := raw.Do(t.Context(), "acl", "setuser", "app", "on", ">"+secret, "~*", "&*", "+@all", "-multi").Err(); err != nil {
		t.Fatal(err)
	}
	client := NewClient(Endpoint{URL: "redis://app:" + secret + "@" + server.Addr}, "test", nil)
	defer client.Close()
	conn, err := client.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		var cmds []redis.Cmder
		_, err := conn.TxPipelined(t.Context(), func(tx redis.Pipeliner) error {
			cmds = append(cmds, tx.Set(t.Context(), "key", "one", 0), tx.Get(t.Context(), "key"))
			return nil
		})
		if !redis.HasErrorPrefix(err, "NOPERM") {
			t.Fatal(err)
		}
		for _, cmd := range cmds {
			if cmd.Err() == nil {
				t.Errorf("no error: %v", cmd)
			}
		}
		if got, err := conn.Echo(t.Context(), "two").Result(); err != nil || got != "two" {
			t.Fatalf("a later command: %q, %v", got, err)
		}
	}
}
