package redisconn

import (
	"cmp"
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

	"userconnectivity/handler/fault"
)

const (
	// dialTimeout bounds the opening of a TCP connection. It is short, so that one begun while nothing answered is
	// soon followed by another. handshakeTimeout bounds the TLS handshake after it, which takes long while many
	// clients come back to a server at once. CommandTimeout bounds a round trip.
	dialTimeout      = 1500 * time.Millisecond
	handshakeTimeout = 5 * time.Second
	CommandTimeout   = 3 * time.Second
	// createLimit bounds the first look at a server or cluster: the connections, and what is asked over them.
	createLimit = connectLimit + 5*CommandTimeout
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
	// Log takes the lines that a person must see: a setting of the server that was changed, a server that evicts. Set it
	// before the first call; nil drops them.
	Log *slog.Logger
	// KeepSettings is true where no setting of the server may be changed; set it before the first call.
	KeepSettings bool

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
	faults     standing
	evictions  evictions
	refusal    atomic.Pointer[refusal]
	apart      atomic.Bool // a server refused a script with keys of several slots
	turns      [classes]chan struct{}
	clocks     sync.Map // node -> *Clock
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
	// Name is that of the server's kind, "redis" or "valkey" among others; Version is that of the server itself, not of
	// the Redis that it is compatible with. Both are empty where INFO is refused.
	Name, Version string
	Cluster       bool
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
	for i := range c.turns {
		c.turns[i] = make(chan struct{}, 1)
	}
	return c
}

var discarded = slog.New(slog.DiscardHandler)

func (c *Client) log() *slog.Logger { return cmp.Or(c.Log, discarded) }

// clientNameRune keeps what CLIENT SETNAME allows: printable characters without blanks.
func clientNameRune(r rune) rune {
	if r <= ' ' || r > '~' {
		return '-'
	}
	return r
}

// Ready fails at once while no server may be asked. On a cluster the watch of each node does so for that node.
func (c *Client) Ready() error { return c.readyFor("") }

func (c *Client) readyFor(node string) error {
	if wait, open := c.circuit.Open(node); open {
		return &fault.Error{
			Kind: fault.Unavailable, Message: "the state store is under maintenance or cannot be reached: try again",
			RetryAfter: max(wait, time.Second), Err: errCircuitOpen,
		}
	}
	return nil
}

var (
	errCircuitOpen = errors.New("the circuit to Redis is open")
	errClosed      = errors.New("the Redis client is closed")
)

// Connect returns the client that all share, which is created on first use. It fails at once while no server may be
// asked, and waits until ctx ends for the first connection, with all others who do. Make round trips with it in a turn
// of their class only; see Through.
func (c *Client) Connect(ctx context.Context) (redis.UniversalClient, error) {
	if err := c.Ready(); err != nil {
		return nil, err
	}
	l, err := c.attempt(ctx)
	if err != nil {
		return nil, Unavailable(c.endpoint.diagnose(err))
	}
	return l, nil
}

// attempt returns the live client, or makes one. Calls at the same time share one attempt, which outlives them, and its
// fault; the next call tries again.
func (c *Client) attempt(ctx context.Context) (*live, error) {
	if l := c.live.Load(); l != nil {
		return l, nil
	}
	made := c.connecting.DoChan("", func() (any, error) {
		if l := c.live.Load(); l != nil {
			return l, nil
		}
		l, err := c.create()
		c.faults.tell("", err)
		return l, err
	})
	select {
	case r := <-made:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*live), nil
	case <-ctx.Done():
		return nil, c.stillConnecting(ctx.Err())
	}
}

func (c *Client) create() (*live, error) {
	ctx, cancel := context.WithTimeout(c.open, createLimit)
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
	server.AddHook(watch{c, node, c.patienceWith(node), &connector{client: c, node: node, server: server}})
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
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout, opt.PoolTimeout = dialTimeout+handshakeTimeout, CommandTimeout, CommandTimeout, CommandTimeout
	opt.ContextTimeoutEnabled = true
	opt.MaxRetries = -1 // a re-sent script may run twice; the callers retry what may be retried
	opt.Dialer, opt.DialerRetries = c.dialer(opt.TLSConfig), 1
	opt.PoolSize, opt.MaxActiveConns, opt.MaxConcurrentDials = 1, 1, 1
	opt.PipelinePoolSize = -1 // pipelines use the pool too
	// What go-redis does with maintenance notifications opens a second connection before the first is closed, and
	// waits longer for answers than we do: we ask for them ourselves.
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	opt.DisableIdentity, opt.OnConnect = true, c.introduce("") // it has what is asked of each connection in one round trip
	return opt, nil
}

// clusterOptions are the same for a cluster: the limits count for each node. Nodes are announced by address,
// so TLS checks the name of the endpoint (opt.TLSConfig.ServerName).
func clusterOptions(opt *redis.Options, slots []redis.ClusterSlot) *redis.ClusterOptions {
	return &redis.ClusterOptions{
		Addrs: seeds(opt.Addr, slots), DisableIdentity: opt.DisableIdentity, Username: opt.Username, Password: opt.Password,
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
	info, err := infoOf(ctx, client)
	switch {
	case err != nil && !isReply(err) || connectionFault(err):
		return Server{}, err
	case err != nil:
		// A user who may not ask. What matters is that commands work, and what tells a cluster is that it has slots.
		//lint:ignore SA1019 CLUSTER SHARDS needs Redis 7, and 6.2 is supported
		slots, err := client.ClusterSlots(ctx).Result()
		if err != nil && !isReply(err) {
			return Server{}, err
		}
		return Server{Cluster: len(slots) > 0}, nil
	}
	s := Server{Name: cmp.Or(info["server_name"], "redis"), Version: info["redis_version"], Cluster: info["cluster_enabled"] == "1"}
	major, rest, _ := strings.Cut(s.Version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	m, err1 := strconv.Atoi(major)
	n, err2 := strconv.Atoi(minor)
	if err1 == nil && err2 == nil && (m < oldestMajor || m == oldestMajor && n < oldestMinor) {
		return s, fmt.Errorf("the Redis at %s has version %s: %d.%d or newer is needed", c.endpoint.setting(), s.Version, oldestMajor, oldestMinor)
	}
	s.Version = cmp.Or(info[s.Name+"_version"], s.Version)
	s.MaxClients, _ = strconv.Atoi(info["maxclients"]) // 0 where the server does not tell
	if s.MaxClients == 0 {
		if got, err := client.ConfigGet(ctx, "maxclients").Result(); err == nil {
			s.MaxClients, _ = strconv.Atoi(got["maxclients"])
		}
	}
	if info["role"] == "slave" && !s.Cluster {
		return s, fmt.Errorf("%s names a read-only replica: name the primary", c.endpoint.setting())
	}
	c.readMemory("", info) // has it told where it evicts
	return s, nil
}

// infoOf reads INFO. Before Redis 7 it takes one section at most, so it is asked for all that are usual.
func infoOf(ctx context.Context, client *redis.Client) (map[string]string, error) {
	text, err := client.Info(ctx).Result()
	if err != nil {
		return nil, err
	}
	info := map[string]string{}
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[k] = v
		}
	}
	return info, nil
}

// Exec sends a pipeline. Each command has its own error.
func Exec(ctx context.Context, pipe redis.Pipeliner) {
	_, _ = pipe.Exec(ctx) // the first of the commands' errors
}

// returned takes in how a round trip went. One whose request ran out of its own time says nothing of Redis.
func (c *Client) returned(ctx context.Context, node string, err error) {
	switch {
	case !connectionFault(err):
		if c.brokenAt.Load() != 0 {
			c.brokenAt.Store(0)
		}
		c.faults.tell(node, nil)
		c.circuit.Succeeded(node)
	case ctx.Err() == nil:
		c.failed(node, err)
	}
}

// failed takes in a fault of the connection to a node. After replaceAfter without a success of any node the client is
// closed, and the next call makes a new one.
func (c *Client) failed(node string, err error) {
	if errors.As(err, new(*refusedGreeting)) {
		err = c.endpoint.diagnoseGreeting(err)
	} else {
		err = c.endpoint.diagnose(err)
	}
	c.faults.tell(node, err)
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
// the breaker's probe. It returns when ctx ends. The attempt to connect that it began goes on, within its own limit,
// and the next Ping joins it.
func (c *Client) Ping(ctx context.Context, node string) error {
	l, err := c.attempt(ctx)
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
	return err
}

// Fault returns why Redis, or one primary of a cluster, cannot be used, with the setting and the cure; nil while they
// answer, and before the first attempt.
func (c *Client) Fault() error { return c.faults.fault("Redis at ") }

// Server returns what Redis told of itself, and how many connections this client has open, on a cluster the most
// that it has to one server; false before the first answer.
func (c *Client) Server() (s Server, connections int, ok bool) {
	l := c.live.Load()
	if l == nil {
		return Server{}, 0, false
	}
	return l.server, c.sockets.most(), true
}

// Diagnose puts the setting and the cure in front of what Redis or the network said, where they are known.
func (c *Client) Diagnose(err error) error { return c.endpoint.diagnose(err) }

// OneServer reports whether there is one connection to one server, as far as is known.
func (c *Client) OneServer() bool {
	l := c.live.Load()
	return l != nil && !l.server.Cluster
}

// Together reports whether one script may have keys of several slots: all are on one server, as far as is known.
func (c *Client) Together() bool { return c.OneServer() && !c.apart.Load() }
