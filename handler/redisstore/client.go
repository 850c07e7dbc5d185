package redisstore

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"userconnectivity/handler/presence"
)

// Client is the one connection to Redis that all functions of a process share. It is created on first use;
// a failed attempt is not remembered.
type Client struct {
	url  string
	name string

	mu     sync.Mutex
	client redis.UniversalClient
}

// NewClient returns a Client for a REDIS_URL (redis://[user:password@]host:port/db, rediss:// with TLS).
// name is shown by CLIENT LIST. It does no I/O: a wrong URL is reported by the first call.
func NewClient(url, name string) *Client {
	return &Client{url: url, name: strings.Map(clientNameRune, name)}
}

// clientNameRune keeps what CLIENT SETNAME allows: printable characters without blanks.
func clientNameRune(r rune) rune {
	if r <= ' ' || r > '~' {
		return '-'
	}
	return r
}

const (
	dialTimeout    = 5 * time.Second
	commandTimeout = 5 * time.Second
)

// get returns the shared client, making it on first use.
func (c *Client) get(context.Context) (redis.UniversalClient, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		return c.client, nil
	}
	if c.url == "" {
		return nil, unavailable(errors.New("no Redis is set: set REDIS_URL=redis://host:6379"))
	}
	opt, err := redis.ParseURL(c.url)
	if err != nil {
		// The parser's error may quote the URL with its password.
		return nil, unavailable(errors.New("REDIS_URL cannot be read: it must look like redis://user:password@host:6379/0, or rediss:// for TLS"))
	}
	opt.ClientName = c.name
	opt.DialTimeout, opt.ReadTimeout, opt.WriteTimeout = dialTimeout, commandTimeout, commandTimeout
	opt.ContextTimeoutEnabled = true
	opt.MaxRetries = -1 // a re-sent script may run twice; the callers retry what may be retried
	opt.PoolSize, opt.MaxActiveConns = 2, 2
	opt.PipelinePoolSize = -1 // pipelines use the pool too
	opt.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	c.client = redis.NewClient(opt)
	return c.client, nil
}

// Close closes the connections. A later call opens new ones.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == nil {
		return nil
	}
	err := c.client.Close()
	c.client = nil
	if err != nil {
		return fmt.Errorf("close the Redis client: %w", err)
	}
	return nil
}

// expiredPattern matches the channels of expired events of every database.
const expiredPattern = "__keyevent@*__:expired"

// Notifications says whether Redis publishes expired events.
type Notifications string

// What is known of the setting notify-keyspace-events.
const (
	NotificationsOn      Notifications = "on"
	NotificationsOff     Notifications = "off"
	NotificationsUnknown Notifications = "unknown"
)

// EnsureNotifications checks that Redis publishes expired events and switches it on where the server allows.
// Expired events are only a doorbell: without them the sweep still wakes for each deadline (design D1).
func (c *Client) EnsureNotifications(ctx context.Context) (Notifications, error) {
	client, err := c.get(ctx)
	if err != nil {
		return NotificationsUnknown, err
	}
	const setting = "notify-keyspace-events"
	got, err := client.ConfigGet(ctx, setting).Result()
	if err != nil {
		return NotificationsUnknown, fmt.Errorf("read %s: %w", setting, err)
	}
	flags := got[setting]
	if strings.Contains(flags, "E") && strings.ContainsAny(flags, "xA") {
		return NotificationsOn, nil
	}
	if err := client.ConfigSet(ctx, setting, flags+"Ex").Err(); err != nil {
		return NotificationsOff, fmt.Errorf("set %s to %q: %w", setting, flags+"Ex", err)
	}
	return NotificationsOn, nil
}

// Expired listens for expired events until ctx ends: ring is called with the key of each, and subscribed each
// time that the subscription stands (again). Events in between are lost, so a sweep must follow subscribed.
func (c *Client) Expired(ctx context.Context, subscribed func(), ring func(key string)) error {
	client, err := c.get(ctx)
	if err != nil {
		return err
	}
	sub := client.PSubscribe(ctx, expiredPattern)
	defer sub.Close()
	for {
		// Without traffic the connection is checked by a ping.
		msg, err := sub.ReceiveTimeout(ctx, 10*time.Second)
		switch m := msg.(type) {
		case *redis.Subscription:
			subscribed()
		case *redis.Message:
			ring(m.Payload)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			continue
		}
		var timeout interface{ Timeout() bool }
		if errors.As(err, &timeout) && timeout.Timeout() {
			if err := sub.Ping(ctx); err == nil {
				continue
			}
		}
		return &presence.Error{Kind: presence.Unavailable, Message: "the subscription to expired events was lost", Err: err}
	}
}
