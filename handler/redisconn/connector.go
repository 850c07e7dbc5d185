package redisconn

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/singleflight"
)

const (
	// connectLimit bounds an attempt to connect. Each of its steps has a shorter limit: dialTimeout, handshakeTimeout,
	// that of a token, CommandTimeout for each round trip of the greeting.
	connectLimit = 40 * time.Second
	// shortestPatience is how long a PING on a connection that stands may take before the connection is given up, or
	// slowFactor times as long as the PING with which it was opened, if that is longer.
	shortestPatience = 750 * time.Millisecond
	slowFactor       = 3
)

// connector opens the connection for commands to one server, and asks over it for signs of life. Nothing else opens
// one: an attempt has its own limits, is shared by all who wait for it, and outlives them. So no short deadline of
// somebody who waits can cancel, again and again, the work that all wait for.
type connector struct {
	client   *Client
	node     string
	server   *redis.Client
	attempts singleflight.Group
	stands   atomic.Bool  // a connection was opened, and is not known to be lost
	trip     atomic.Int64 // how long the PING took that was sent first over it, in ns
}

// attempting is in the context of the PING of an attempt.
type attempting struct{}

// greeting is in the context of each round trip. go-redis greets a server that it has connected to within the round
// trip that needs the connection, and the commands of the greeting come through our hooks as others do.
type greeting struct {
	begun bool
	done  time.Time
}

func greetingOf(ctx context.Context) *greeting {
	g, _ := ctx.Value(greetingKey{}).(*greeting)
	return g
}

type greetingKey struct{}

// refused reports whether a server was greeted and did not take us.
func (g *greeting) refused() bool { return g.begun && g.done.IsZero() }

// refusedGreeting is why a server did not take us, a fault of the connection also where the server itself said so.
type refusedGreeting struct{ err error }

func (r *refusedGreeting) Error() string { return r.err.Error() }
func (r *refusedGreeting) Unwrap() error { return r.err }

// errNotConnected is what a command finds where a connection must be opened first. Nothing was sent.
var errNotConnected = errors.New("no connection is open")

// ping asks the server for a sign of life, over the connection that stands or over a new one. It returns when ctx
// ends; the attempt goes on.
func (k *connector) ping(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	attempt := k.attempts.DoChan("", func() (any, error) { return nil, guarded(k.attempt) })
	select {
	case r := <-attempt:
		return r.Err
	case <-ctx.Done():
		return k.client.stillConnecting(ctx.Err())
	}
}

func (k *connector) attempt() error {
	if k.stands.Load() {
		err := k.once(max(shortestPatience, min(slowFactor*time.Duration(k.trip.Load()), CommandTimeout)))
		if err == nil || isReply(err) {
			k.client.returned(k.client.open, k.node, err)
			return err
		}
		k.stands.Store(false)
		k.client.circuit.Lost(k.node)
	}
	addr := k.server.Options().Addr
	k.client.sockets.await(addr, 1)
	err := k.once(connectLimit)
	for range 3 { // go-redis may have kept what somebody was given before
		if !errors.Is(err, errNotConnected) {
			break
		}
		err = k.once(connectLimit)
	}
	k.client.sockets.await(addr, -1)
	if err == nil {
		k.stands.Store(true)
	}
	k.client.returned(k.client.open, k.node, err)
	return err
}

// once sends one PING. Whatever the server answers is a sign of life, unless it says that it serves nobody.
func (k *connector) once(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(k.client.open, limit)
	defer cancel()
	err := k.server.Ping(context.WithValue(ctx, attempting{}, k)).Err()
	if !connectionFault(err) {
		return nil
	}
	return err
}

// stillConnecting is what somebody is told whose time is over before there is a connection.
func (c *Client) stillConnecting(err error) error {
	if c.sockets.handshakes.Load() > 0 {
		err = fmt.Errorf("%w: %w", errBeginTLS, err)
	}
	return c.endpoint.diagnose(fmt.Errorf("connect to Redis: %w", err))
}
