package redisstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
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
	// dialTimeout bounds a new connection, TLS included; commandTimeout a round trip.
	dialTimeout    = 5 * time.Second
	commandTimeout = 3 * time.Second
	// replaceAfter is how long every round trip may fail before the client is closed and made anew.
	replaceAfter = 15 * time.Second
	// oldestRedis is the first version that has all we use (XAUTOCLAIM, PXAT, effects replication).
	oldestRedis = 6.2
)

// Circuit is asked before each round trip, and told how it went. A maintenance.Breaker is one.
type Circuit interface {
	// Open reports whether Redis must be left alone now, and for how long at most.
	Open() (retryAfter time.Duration, open bool)
	// Failed tells of a connection-level fault, Succeeded of a round trip that came back.
	Failed(err error)
	Succeeded()
}

// Client is the one way to Redis that all functions of a process share: one connection for commands, which
// concurrent requests share by pipelining, and one for subscriptions. It is created on first use; a failed
// attempt is not remembered; one that stays broken is closed and replaced (design D8).
type Client struct {
	endpoint Endpoint
	name     string
	circuit  Circuit

	connecting singleflight.Group
	live       atomic.Pointer[live]
	mu         sync.Mutex // guards changes of live and closed
	closed     bool
	brokenAt   atomic.Int64 // when round trips began to fail, in Unix ns; 0 while they succeed
}

// live is a client that answered.
type live struct {
	redis.UniversalClient
	server Server
}

// Server is what Redis told of itself when it was connected to.
type Server struct {
	Version string
	Cluster bool
	// MaxClients is the server's limit of connections, 0 when it does not tell.
	MaxClients int
}

// Endpoint says which Redis, and who we are there: URL, or Host with AccessKey; or either with Credentials.
type Endpoint struct {
	// URL is REDIS_URL: redis://[user:password@]host:port/db, rediss:// with TLS.
	URL string
	// Host is REDIS_HOST: host or host:port (10000, as Azure Managed Redis has it), always over TLS.
	Host string
	// AccessKey is REDIS_ACCESS_KEY.
	AccessKey string
	// Credentials returns user and password for a new connection, such as an Entra token. It is asked for each
	// connection, and connections are opened anew before they are Life old.
	Credentials func(ctx context.Context) (user, password string, err error)
	// Life is how long a connection with Credentials lives.
	Life time.Duration
}

// NewClient returns a Client. name is shown by CLIENT LIST. circuit may be nil. It does no I/O: a wrong
// endpoint is reported by the first call.
func NewClient(e Endpoint, name string, circuit Circuit) *Client {
	return &Client{endpoint: e, name: strings.Map(clientNameRune, name), circuit: circuit}
}

// clientNameRune keeps what CLIENT SETNAME allows: printable characters without blanks.
func clientNameRune(r rune) rune {
	if r <= ' ' || r > '~' {
		return '-'
	}
	return r
}

// ready fails at once while the circuit is open.
func (c *Client) ready() error {
	if c.circuit == nil {
		return nil
	}
	if wait, open := c.circuit.Open(); open {
		return &presence.Error{Kind: presence.Unavailable, Message: "the state store is under maintenance or cannot be reached: try again",
			RetryAfter: max(wait, time.Second), Err: errCircuitOpen}
	}
	return nil
}

var errCircuitOpen = errors.New("the circuit to Redis is open")

// connect returns the shared client. Concurrent first calls share one attempt, and its fault; the next call
// tries again.
func (c *Client) connect(ctx context.Context) (redis.UniversalClient, error) {
	if err := c.ready(); err != nil {
		return nil, err
	}
	if l := c.live.Load(); l != nil {
		return l, nil
	}
	attempt := c.connecting.DoChan("", func() (any, error) {
		if l := c.live.Load(); l != nil {
			return l, nil
		}
		// The attempt outlives the request that happened to be the first.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialTimeout+commandTimeout)
		defer cancel()
		l, err := c.dial(ctx)
		if err != nil {
			if c.circuit != nil && connectionFault(err) {
				c.circuit.Failed(err)
			}
			return nil, err
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.closed {
			_ = l.Close()
			return nil, errors.New("the Redis client is closed")
		}
		c.live.Store(l)
		return l, nil
	})
	select {
	case r := <-attempt:
		if r.Err != nil {
			return nil, unavailable(diagnose(r.Err))
		}
		return r.Val.(*live), nil
	case <-ctx.Done():
		return nil, unavailable(fmt.Errorf("connect to Redis: %w", ctx.Err()))
	}
}

// dial makes a client and looks at the server once: a server that cannot serve us is refused with the cure.
func (c *Client) dial(ctx context.Context) (*live, error) {
	opt, err := c.options()
	if err != nil {
		return nil, err
	}
	client := redis.NewClient(opt)
	server, err := inspect(ctx, client)
	if err != nil {
		_ = client.Close() // the fault that matters is err
		return nil, err
	}
	if !server.Cluster {
		return &live{client, server}, nil
	}
	_ = client.Close() // it was only to ask
	return &live{redis.NewClusterClient(clusterOptions(opt)), server}, nil
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
	opt.DialerRetries = 1
	opt.PoolSize, opt.MaxActiveConns, opt.MaxConcurrentDials = 1, 1, 1
	opt.PipelinePoolSize = -1 // pipelines use the pool too
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return opt, nil
}

// options reads the endpoint. Its errors have no secret in them.
func (e Endpoint) options() (*redis.Options, error) {
	if e.URL != "" {
		opt, err := redis.ParseURL(e.URL)
		if err != nil {
			// The parser's error may quote the URL with its password.
			return nil, errors.New("REDIS_URL cannot be read: it must look like redis://user:password@host:6379/0, or rediss:// for TLS")
		}
		return e.withCredentials(opt), nil
	}
	if e.Host == "" {
		return nil, errors.New("no Redis is set: set REDIS_URL=redis://host:6379, or REDIS_HOST")
	}
	host, port, err := net.SplitHostPort(e.Host)
	if err != nil {
		host, port = e.Host, managedRedisPort
	}
	return e.withCredentials(&redis.Options{Addr: net.JoinHostPort(host, port), Password: e.AccessKey,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host}}), nil
}

func (e Endpoint) withCredentials(opt *redis.Options) *redis.Options {
	if e.Credentials != nil {
		opt.CredentialsProviderContext, opt.ConnMaxLifetime = e.Credentials, e.Life
	}
	return opt
}

// managedRedisPort is where Azure Managed Redis listens.
const managedRedisPort = "10000"

// clusterOptions are the same for a cluster: the limits count for each node. Nodes are announced by address,
// so TLS checks the name of the endpoint (opt.TLSConfig.ServerName).
func clusterOptions(opt *redis.Options) *redis.ClusterOptions {
	return &redis.ClusterOptions{
		Addrs: []string{opt.Addr}, ClientName: opt.ClientName, Username: opt.Username, Password: opt.Password,
		CredentialsProviderContext: opt.CredentialsProviderContext, ConnMaxLifetime: opt.ConnMaxLifetime, TLSConfig: opt.TLSConfig,
		DialTimeout: opt.DialTimeout, ReadTimeout: opt.ReadTimeout, WriteTimeout: opt.WriteTimeout, PoolTimeout: opt.PoolTimeout,
		ContextTimeoutEnabled: true, MaxRetries: -1, DialerRetries: 1, MaxRedirects: clusterRedirects,
		PoolSize: 1, MaxActiveConns: 1, MaxConcurrentDials: 1, PipelinePoolSize: -1,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// clusterRedirects is how often a command follows MOVED and ASK while slots move.
const clusterRedirects = 8

// inspect asks the server what it is.
func inspect(ctx context.Context, client *redis.Client) (Server, error) {
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
	if info["role"] == "slave" {
		return s, errors.New("REDIS_URL names a read-only replica: name the primary")
	}
	major, rest, _ := strings.Cut(s.Version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	if v, err := strconv.ParseFloat(major+"."+minor, 64); err == nil && v < oldestRedis {
		return s, fmt.Errorf("the Redis at REDIS_URL has version %s: %.1f or newer is needed", s.Version, oldestRedis)
	}
	return s, nil
}

// exec sends a pipeline and tells the circuit how it went. Each command has its own error.
func (c *Client) exec(ctx context.Context, pipe redis.Pipeliner) {
	_, err := pipe.Exec(ctx)
	if !connectionFault(err) {
		c.brokenAt.Store(0)
		if c.circuit != nil {
			c.circuit.Succeeded()
		}
		return
	}
	if c.circuit != nil {
		c.circuit.Failed(err)
	}
	now := time.Now().UnixNano()
	if c.brokenAt.CompareAndSwap(0, now) {
		return
	}
	if broken := time.Duration(now - c.brokenAt.Load()); broken > replaceAfter {
		c.brokenAt.Store(0)
		c.replace()
	}
}

// replace closes the client, so that the next call makes a new one.
func (c *Client) replace() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if l := c.live.Swap(nil); l != nil {
		_ = l.Close() // it was broken already
	}
}

// Close closes the connections; no call opens new ones afterwards.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if l := c.live.Swap(nil); l != nil {
		if err := l.Close(); err != nil {
			return fmt.Errorf("close the Redis client: %w", err)
		}
	}
	return nil
}

// Ping asks Redis for a sign of life, also while the circuit is open: the breaker's probe.
func (c *Client) Ping(ctx context.Context) error {
	if l := c.live.Load(); l != nil {
		return l.Ping(ctx).Err()
	}
	l, err := c.dial(ctx)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || !c.live.CompareAndSwap(nil, l) {
		_ = l.Close() // another call was first
	}
	return nil
}

// Server returns what Redis told of itself, and the connections of this client; false before the first answer.
func (c *Client) Server() (s Server, connections int, ok bool) {
	l := c.live.Load()
	if l == nil {
		return Server{}, 0, false
	}
	stats := l.PoolStats()
	return l.server, int(stats.TotalConns) + int(stats.PubSubStats.Active), true
}

// isReply reports whether err is an answer of Redis, so that the connection is well.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// connectionFault reports whether err tells of the connection rather than of a command. A request that ran
// out of its own time says nothing of the connection.
func connectionFault(err error) bool {
	switch {
	case err == nil, errors.Is(err, context.Canceled):
		return false
	case isReply(err):
		return redis.HasErrorPrefix(err, "LOADING") || redis.HasErrorPrefix(err, "READONLY") || redis.HasErrorPrefix(err, "MASTERDOWN") ||
			strings.Contains(err.Error(), "max number of clients")
	}
	return true
}

// diagnose puts the setting and the cure in front of what Redis or the network said.
func diagnose(err error) error {
	var dns *net.DNSError
	text := err.Error()
	switch {
	case errors.As(err, &dns):
		return fmt.Errorf("REDIS_URL names a host that does not exist; check its spelling: %w", err)
	case strings.HasPrefix(text, "WRONGPASS"), strings.HasPrefix(text, "NOAUTH"), strings.Contains(text, "invalid password"):
		return fmt.Errorf("REDIS_URL has a wrong user or password; percent-encode special characters in it: %w", err)
	case strings.HasPrefix(text, "NOPERM"):
		return fmt.Errorf("the user of REDIS_URL lacks a permission; grant it with ACL SETUSER name +@all ~* &* (Azure Managed Redis: access policy default): %w", err)
	case strings.Contains(text, "first record does not look like a TLS handshake"):
		return fmt.Errorf("REDIS_URL begins with rediss:// but the port speaks plain text; use redis:// or the TLS port: %w", err)
	case strings.Contains(text, "x509:"), strings.Contains(text, "tls:"):
		return fmt.Errorf("the TLS certificate of the host in REDIS_URL was refused; the name must be the certificate's: %w", err)
	case strings.Contains(text, "max number of clients"):
		return fmt.Errorf("redis has no connection left; lower MAX_INSTANCES or choose a larger tier: %w", err)
	case strings.Contains(text, "connection refused"):
		return fmt.Errorf("nothing listens at the host and port of REDIS_URL: %w", err)
	case errors.Is(err, errEOF), strings.Contains(text, "connection reset"):
		return fmt.Errorf("the connection to REDIS_URL was closed during the greeting; a TLS port needs rediss://: %w", err)
	}
	return err
}
