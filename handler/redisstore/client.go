package redisstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"golang.org/x/sync/singleflight"

	"userconnectivity/handler/presence"
)

const (
	// dialTimeout bounds a new connection, TLS included. It is short, so that one begun while nothing answered is
	// soon followed by another. commandTimeout bounds a round trip.
	dialTimeout    = 1500 * time.Millisecond
	commandTimeout = 3 * time.Second
	// replaceAfter is how long every round trip may fail before the client is closed and made anew.
	replaceAfter = 15 * time.Second
)

// The first version of Redis that has all we use (XAUTOCLAIM, PXAT, effects replication).
const oldestMajor, oldestMinor = 6, 2

// Circuit is asked before each round trip to a node, and told how it went. A node is a primary of a cluster, by its
// address; "" stands for the single server, and for all nodes where it is not known which. A maintenance.Set is one.
type Circuit interface {
	// Open reports whether a node must be left alone now, and for how long at most; of node "" whether all must.
	Open(node string) (retryAfter time.Duration, open bool)
	// AnyOpen reports whether at least one node must be left alone.
	AnyOpen() bool
	// Failed tells of a connection-level fault, Lost of a subscription that stood and broke, Succeeded of a round
	// trip that came back.
	Failed(node string, err error)
	Lost(node string)
	Succeeded(node string)
	// Announced takes in one of Redis's own maintenance notifications, which came from a node.
	Announced(node string, notification []any)
	// SetNodes says which primaries a cluster has now; none for a single server.
	SetNodes(nodes []string)
}

// noCircuit is never open.
type noCircuit struct{}

func (noCircuit) Open(string) (time.Duration, bool) { return 0, false }
func (noCircuit) AnyOpen() bool                     { return false }
func (noCircuit) Failed(string, error)              {}
func (noCircuit) Lost(string)                       {}
func (noCircuit) Succeeded(string)                  {}
func (noCircuit) Announced(string, []any)           {}
func (noCircuit) SetNodes([]string)                 {}

// Client is the one way to Redis that all functions of a process share: one connection for commands, which
// concurrent requests share by pipelining, and one for subscriptions; on a cluster so many to each primary. It is
// created on first use; a failed attempt is not remembered; one that stays broken is closed and replaced (design D8).
type Client struct {
	endpoint     Endpoint
	name         string
	circuit      Circuit
	replaceAfter time.Duration
	quiet        time.Duration
	rescan       time.Duration

	// open ends with Close.
	open       context.Context //nolint:containedctx // the attempts to connect outlive the requests that begin them
	end        context.CancelFunc
	connecting singleflight.Group
	mu         sync.Mutex // guards changes of live
	live       atomic.Pointer[live]
	brokenAt   atomic.Int64 // when round trips began to fail, in Unix ns; 0 while they succeed
	sockets    sockets
	patience   sync.Map // node -> *patience
	clocks     sync.Map // node -> *clock
	subscribed standing
	followers  sync.WaitGroup
}

// lines takes go-redis's own log lines, which repeat faults that it also returns.
type lines struct{ log *slog.Logger }

func (l lines) Printf(ctx context.Context, format string, v ...any) {
	if l.log.Enabled(ctx, slog.LevelDebug) {
		l.log.DebugContext(ctx, "go-redis: "+fmt.Sprintf(format, v...))
	}
}

func init() { LogTo(slog.New(slog.DiscardHandler)) }

// LogTo sends the lines of the Redis library itself to log, at level Debug; before the first call they are dropped.
// The library has one log for the whole process.
func LogTo(log *slog.Logger) { redis.SetLogger(lines{log}) }

// live is a client that answered.
type live struct {
	redis.UniversalClient
	server  Server
	cluster *primaries // nil for a single server
}

// close closes the connections.
func (l *live) close() error {
	if l.cluster != nil {
		l.cluster.end()
	}
	return l.Close()
}

// Server is what Redis told of itself when it was connected to.
type Server struct {
	Version string
	Cluster bool
	// MaxClients is the server's limit of connections, 0 when it does not tell.
	MaxClients int
}

// NewClient returns a Client. name is shown by CLIENT LIST. circuit may be nil. It does no I/O: a wrong
// endpoint is reported by the first call.
func NewClient(e Endpoint, name string, circuit Circuit) *Client {
	if circuit == nil {
		circuit = noCircuit{}
	}
	c := &Client{endpoint: e, name: strings.Map(clientNameRune, name), circuit: circuit, replaceAfter: replaceAfter, quiet: quiet, rescan: rescan}
	c.open, c.end = context.WithCancel(context.Background())
	return c
}

// clientNameRune keeps what CLIENT SETNAME allows: printable characters without blanks.
func clientNameRune(r rune) rune {
	if r <= ' ' || r > '~' {
		return '-'
	}
	return r
}

// ready fails at once while no server may be asked. On a cluster the watch of each node does so for that node.
func (c *Client) ready() error { return c.readyFor("") }

func (c *Client) readyFor(node string) error {
	if wait, open := c.circuit.Open(node); open {
		return &presence.Error{
			Kind: presence.Unavailable, Message: "the state store is under maintenance or cannot be reached: try again",
			RetryAfter: max(wait, time.Second), Err: errCircuitOpen,
		}
	}
	return nil
}

var (
	errCircuitOpen = errors.New("the circuit to Redis is open")
	errClosed      = errors.New("the Redis client is closed")
)

// connect returns the shared client.
func (c *Client) connect(ctx context.Context) (redis.UniversalClient, error) {
	if err := c.ready(); err != nil {
		return nil, err
	}
	// The attempt outlives the request that happens to be the first.
	l, err := c.attempt(ctx, dialTimeout+commandTimeout)
	if err != nil {
		return nil, unavailable(c.endpoint.diagnose(err))
	}
	return l, nil
}

// attempt returns the live client, or makes one within the limit. Calls at the same time share one attempt, and its
// fault; the next call tries again.
func (c *Client) attempt(ctx context.Context, limit time.Duration) (*live, error) {
	if l := c.live.Load(); l != nil {
		return l, nil
	}
	made := c.connecting.DoChan("", func() (any, error) {
		if l := c.live.Load(); l != nil {
			return l, nil
		}
		return c.create(limit)
	})
	select {
	case r := <-made:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*live), nil
	case <-ctx.Done():
		return nil, fmt.Errorf("connect to Redis: %w", ctx.Err())
	}
}

func (c *Client) create(limit time.Duration) (*live, error) {
	ctx, cancel := context.WithTimeout(c.open, limit)
	defer cancel()
	l, err := c.dial(ctx)
	if c.open.Err() != nil {
		err = errors.Join(errClosed, err)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open.Err() != nil {
		_ = l.close() // nobody has used it
		return nil, errClosed
	}
	c.live.Store(l)
	if l.cluster == nil {
		c.circuit.SetNodes(nil)
		return l, nil
	}
	c.circuit.SetNodes(l.cluster.addrs())
	c.followers.Go(func() { c.follow(l) })
	return l, nil
}

// dial makes a client and looks at the server once: a server that cannot serve us is refused with the cure.
func (c *Client) dial(ctx context.Context) (*live, error) {
	opt, err := c.options()
	if err != nil {
		return nil, err
	}
	client := redis.NewClient(opt)
	c.attend("", client)
	server, err := c.inspect(ctx, client)
	if err == nil && !server.Cluster {
		return &live{UniversalClient: client, server: server}, nil
	}
	var slots []redis.ClusterSlot
	if err == nil {
		//lint:ignore SA1019 CLUSTER SHARDS needs Redis 7, and 6.2 is supported
		slots, err = client.ClusterSlots(ctx).Result()
	}
	_ = client.Close() // it was only to ask
	if err != nil {
		return nil, c.endpoint.diagnoseGreeting(err)
	}
	options := clusterOptions(opt, slots)
	options.NewClient = c.newNode
	cluster := redis.NewClusterClient(options)
	cluster.AddHook(once{})
	cluster.OnNewNode(func(node *redis.Client) { c.attend(node.Options().Addr, node) })
	known, err := c.newPrimaries(ctx, cluster)
	if err != nil {
		_ = cluster.Close() // nobody has used it
		return nil, c.endpoint.diagnose(err)
	}
	return &live{cluster, server, known}, nil
}

// attend has us told of each round trip to a node, and of what the node announces.
func (c *Client) attend(node string, server *redis.Client) {
	server.AddHook(watch{c, node, c.patienceWith(node)})
	if c.endpoint.Unannounced {
		return
	}
	for _, name := range announcements {
		// It is refused where the endpoint asks for a protocol that has no such notifications.
		_ = server.RegisterPushNotificationHandler(name, announced{c, node}, false)
	}
}

func (c *Client) options() (*redis.Options, error) {
	opt, err := c.endpoint.options()
	if err != nil {
		return nil, err
	}
	opt.ClientName = c.name
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout, opt.PoolTimeout = dialTimeout, commandTimeout, commandTimeout, commandTimeout
	opt.ContextTimeoutEnabled = true
	opt.MaxRetries = -1 // a re-sent script may run twice; the callers retry what may be retried
	opt.Dialer, opt.DialerRetries = c.dialer(opt.TLSConfig), 1
	opt.PoolSize, opt.MaxActiveConns, opt.MaxConcurrentDials = 1, 1, 1
	opt.PipelinePoolSize = -1 // pipelines use the pool too
	// What go-redis does with maintenance notifications opens a second connection before the first is closed, and
	// waits longer for answers than we do: we ask for them ourselves.
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	opt.OnConnect = c.greet("")
	return opt, nil
}

// clusterOptions are the same for a cluster: the limits count for each node. Nodes are announced by address,
// so TLS checks the name of the endpoint (opt.TLSConfig.ServerName).
func clusterOptions(opt *redis.Options, slots []redis.ClusterSlot) *redis.ClusterOptions {
	return &redis.ClusterOptions{
		Addrs: seeds(opt.Addr, slots), ClientName: opt.ClientName, Username: opt.Username, Password: opt.Password,
		CredentialsProviderContext: opt.CredentialsProviderContext, ConnMaxLifetime: opt.ConnMaxLifetime,
		TLSConfig: opt.TLSConfig, Dialer: opt.Dialer, DialTimeout: opt.DialTimeout, DialerRetries: opt.DialerRetries,
		ReadTimeout: opt.ReadTimeout, WriteTimeout: opt.WriteTimeout, PoolTimeout: opt.PoolTimeout,
		ContextTimeoutEnabled: true, MaxRetries: -1, MaxRedirects: clusterRedirects,
		PoolSize: opt.PoolSize, MaxActiveConns: opt.MaxActiveConns, MaxConcurrentDials: opt.MaxConcurrentDials, PipelinePoolSize: -1,
		MaintNotificationsConfig: opt.MaintNotificationsConfig, OnConnect: opt.OnConnect, DisableRoutingPolicies: true,
	}
}

// seeds are the addresses that a cluster announces. The endpoint's own name is not among them where that can be
// avoided: it would be a further node to the client, with a further connection to a server that it has already.
func seeds(endpoint string, slots []redis.ClusterSlot) []string {
	var addrs []string
	for _, slot := range slots {
		for _, node := range slot.Nodes {
			host, _, err := net.SplitHostPort(node.Addr)
			if err != nil || host == "" || net.ParseIP(host).IsLoopback() {
				return []string{endpoint} // an address that means something to the server alone
			}
			if !slices.Contains(addrs, node.Addr) {
				addrs = append(addrs, node.Addr)
			}
		}
	}
	if len(addrs) == 0 {
		return []string{endpoint}
	}
	return addrs
}

// clusterRedirects is how often a command follows MOVED and ASK while slots move.
const clusterRedirects = 2

// inspect asks the server what it is.
func (c *Client) inspect(ctx context.Context, client *redis.Client) (Server, error) {
	text, err := client.Info(ctx, "server", "replication", "cluster", "clients").Result()
	if err != nil {
		if !isReply(err) {
			return Server{}, err
		}
		// A Redis without INFO, or a user who may not ask: what matters is that commands work.
		return Server{}, client.Ping(ctx).Err()
	}
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	s := Server{Version: info["redis_version"], Cluster: info["cluster_enabled"] == "1"}
	s.MaxClients, _ = strconv.Atoi(info["maxclients"]) // 0 where the server does not tell
	if s.MaxClients == 0 {
		if got, err := client.ConfigGet(ctx, "maxclients").Result(); err == nil {
			s.MaxClients, _ = strconv.Atoi(got["maxclients"])
		}
	}
	if info["role"] == "slave" && !s.Cluster {
		return s, fmt.Errorf("%s names a read-only replica: name the primary", c.endpoint.setting())
	}
	major, rest, _ := strings.Cut(s.Version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	m, err1 := strconv.Atoi(major)
	n, err2 := strconv.Atoi(minor)
	if err1 == nil && err2 == nil && (m < oldestMajor || m == oldestMajor && n < oldestMinor) {
		return s, fmt.Errorf("the Redis at %s has version %s: %d.%d or newer is needed", c.endpoint.setting(), s.Version, oldestMajor, oldestMinor)
	}
	return s, nil
}

// exec sends a pipeline. Each command has its own error.
func (c *Client) exec(ctx context.Context, pipe redis.Pipeliner) {
	_, _ = pipe.Exec(ctx) // the first of the commands' errors
}

// watch tells of each round trip to one server, and lets none begin to a node of a cluster that must be left alone.
type watch struct {
	client   *Client
	node     string
	patience *patience
}

// probing is in the context of a PING that asks whether a node is back.
type probing struct{}

// ready fails at once while the node must be left alone. For a single server that was asked before.
func (w watch) ready(ctx context.Context) error {
	if w.node == "" {
		return nil
	}
	err := w.client.readyFor(w.node)
	if err != nil && ctx.Value(probing{}) != nil {
		return nil
	}
	return err
}

func (w watch) DialHook(next redis.DialHook) redis.DialHook { return next }

func (w watch) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		return w.ask(ctx, func(ctx context.Context) error { return next(ctx, cmd) }, cmd)
	}
}

func (w watch) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		return w.ask(ctx, func(ctx context.Context) error { return next(ctx, cmds) }, cmds...)
	}
}

// ask makes one round trip with some commands. A probe goes on when the server is given up: it asks whether it is back.
func (w watch) ask(ctx context.Context, roundTrip func(context.Context) error, cmds ...redis.Cmder) error {
	if err := w.ready(ctx); err != nil {
		return err
	}
	joined, givenUp := ctx, func() bool { return false }
	if ctx.Value(probing{}) == nil {
		withTerm, t, done := w.patience.join(ctx)
		defer done()
		joined, givenUp = withTerm, func() bool { return t.Err() != nil }
	}
	err := roundTrip(joined)
	if err != nil && givenUp() && !isReply(err) {
		return giveUp(cmds...)
	}
	fault := err
	for _, cmd := range cmds {
		if !connectionFault(fault) {
			fault = cmd.Err()
		}
	}
	w.client.returned(ctx, w.node, fault)
	return err
}

// returned takes in how a round trip went. One whose request ran out of its own time says nothing of Redis.
func (c *Client) returned(ctx context.Context, node string, err error) {
	switch {
	case !connectionFault(err):
		if c.brokenAt.Load() != 0 {
			c.brokenAt.Store(0)
		}
		c.circuit.Succeeded(node)
	case ctx.Err() == nil:
		c.failed(node, err)
	}
}

// failed takes in a fault of the connection to a node. After replaceAfter without a success of any node the client is
// closed, and the next call makes a new one.
func (c *Client) failed(node string, err error) {
	c.circuit.Failed(node, err)
	if l := c.live.Load(); l != nil && l.cluster != nil {
		l.cluster.mayHaveChanged()
	}
	now := time.Now().UnixNano()
	if c.brokenAt.CompareAndSwap(0, now) || time.Duration(now-c.brokenAt.Load()) < c.replaceAfter {
		return
	}
	c.brokenAt.Store(0)
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.live.Swap(nil); l != nil {
		_ = l.close() // it was broken already
	}
}

// Close closes the connections; no call opens new ones afterwards.
func (c *Client) Close() error {
	c.end()
	c.sockets.closeAll()
	c.mu.Lock()
	var err error
	if l := c.live.Swap(nil); l != nil {
		err = l.close()
	}
	c.mu.Unlock()
	c.followers.Wait()
	if err != nil {
		return fmt.Errorf("close the Redis client: %w", err)
	}
	return nil
}

var errNoPrimary = errors.New("the node is no primary of the cluster any more")

// Ping asks a node for a sign of life, for node "" the single server or each primary; also while its circuit is open:
// the breaker's probe. It returns when ctx ends.
func (c *Client) Ping(ctx context.Context, node string) error {
	limit := dialTimeout + commandTimeout
	if end, ok := ctx.Deadline(); ok {
		limit = time.Until(end)
	}
	l, err := c.attempt(ctx, limit)
	if err != nil {
		return err
	}
	ctx = context.WithValue(ctx, probing{}, true)
	ping := func(ctx context.Context, server *redis.Client) error { return server.Ping(ctx).Err() }
	switch client := l.UniversalClient.(type) {
	case *redis.ClusterClient:
		if node == "" {
			err = client.ForEachMaster(ctx, ping)
			break
		}
		server := l.cluster.all()[node]
		if server == nil {
			return errNoPrimary
		}
		err = ping(ctx, server)
	case *redis.Client:
		err = ping(ctx, client)
	}
	if err != nil && ctx.Err() != nil {
		c.failed(node, err) // the time of a probe is enough for Redis
	}
	return err
}

// Server returns what Redis told of itself, and how many connections this client has open, on a cluster the most
// that it has to one server; false before the first answer.
func (c *Client) Server() (s Server, connections int, ok bool) {
	l := c.live.Load()
	if l == nil {
		return Server{}, 0, false
	}
	return l.server, c.sockets.most(), true
}

// oneServer reports whether all keys are on one server, as far as is known.
func (c *Client) oneServer() bool {
	l := c.live.Load()
	return l != nil && !l.server.Cluster
}

// isReply reports whether err is an answer of Redis, so that the connection is well.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// connectionFault reports whether err tells of the connection or the server rather than of a command.
func connectionFault(err error) bool {
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return false
	case isReply(err):
		return redis.HasErrorPrefix(err, "LOADING") || redis.HasErrorPrefix(err, "READONLY") || redis.HasErrorPrefix(err, "MASTERDOWN")
	}
	return true
}
