package redisstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
)

var errEOF = io.EOF

const (
	// expiredPattern matches the channels of expired events of every database.
	expiredPattern = "__keyevent@*__:expired"
	// maintenanceChannel is where Azure Cache for Redis announces maintenance.
	maintenanceChannel = "AzureRedisEvents"
	// quiet is how long a subscription may be silent before a ping checks it.
	quiet = 10 * time.Second
)

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
	client, err := c.connect(ctx)
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

// Subscriber is told what comes over the one subscription of a process. Nil functions are not called, and
// their channels not subscribed to.
type Subscriber struct {
	// Subscribed is called each time that the subscription stands (again): what was published in between is
	// lost, so a sweep must follow.
	Subscribed func()
	// Expired is called with the key of each expired event.
	Expired func(key string)
	// Maintenance is called with the text of each message of Azure's maintenance channel.
	Maintenance func(text string)
}

// resubscribeWait is how long a lost subscription waits before it is made again.
const resubscribeWait = 100 * time.Millisecond

// Subscribe keeps a subscription until ctx ends: one that is lost is made again, and one whose credentials
// grow old is replaced by a new one before it is closed. lost is told of each loss.
func (c *Client) Subscribe(ctx context.Context, s Subscriber, lost func(error)) {
	if s.Expired == nil && s.Maintenance == nil {
		return
	}
	var before func() // ends the subscription before
	defer func() {
		if before != nil {
			before()
		}
	}()
	for ctx.Err() == nil {
		current, cancel := context.WithCancel(ctx)
		stands := make(chan struct{}, 1)
		told := s
		told.Subscribed = func() {
			if s.Subscribed != nil {
				s.Subscribed()
			}
			select {
			case stands <- struct{}{}:
			default:
			}
		}
		ended := make(chan error, 1)
		go func() { ended <- c.listen(current, told) }()
		stop := func() {
			cancel()
			<-ended
		}
		var old <-chan time.Time
		if c.endpoint.Life > 0 {
			old = time.After(c.endpoint.Life)
		}
		for listening := true; listening; {
			select {
			case <-stands:
				if before != nil {
					before()
					before = nil
				}
			case <-old:
				before, listening = stop, false
			case err := <-ended:
				cancel()
				listening = false
				if ctx.Err() == nil {
					lost(err)
					sleep(ctx, resubscribeWait)
				}
			}
		}
	}
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// listen subscribes and calls the subscriber until ctx ends or the connection is lost.
func (c *Client) listen(ctx context.Context, s Subscriber) error {
	client, err := c.connect(ctx)
	if err != nil {
		return err
	}
	if cluster, ok := client.(*live).UniversalClient.(*redis.ClusterClient); ok {
		return listenToAll(ctx, cluster, s)
	}
	return listenTo(ctx, client, s)
}

// rescan is how often the primaries of a cluster are looked up again.
const rescan = 5 * time.Second

// listenToAll subscribes on every primary of a cluster, since each publishes the expired events of its own
// keys only, and follows the cluster as primaries come and go.
func listenToAll(ctx context.Context, cluster *redis.ClusterClient, s Subscriber) error {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	type node struct {
		stop  context.CancelFunc
		ended chan struct{}
	}
	nodes := map[string]node{}
	for {
		found := map[string]*redis.Client{}
		var mu sync.Mutex
		cluster.ReloadState(ctx)
		err := cluster.ForEachMaster(ctx, func(_ context.Context, n *redis.Client) error {
			mu.Lock()
			defer mu.Unlock()
			found[n.Options().Addr] = n
			return nil
		})
		if err != nil {
			return unavailable(diagnose(err))
		}
		for addr, n := range nodes {
			select {
			case <-n.ended: // lost: it is subscribed to anew below
				delete(nodes, addr)
			default:
				if found[addr] == nil {
					n.stop()
					delete(nodes, addr)
				}
			}
		}
		for addr, client := range found {
			if _, ok := nodes[addr]; ok {
				continue
			}
			nodeCtx, stop := context.WithCancel(ctx)
			n := node{stop, make(chan struct{})}
			nodes[addr] = n
			running.Go(func() {
				defer close(n.ended)
				defer stop()
				_ = listenTo(nodeCtx, client, s) // the next scan subscribes again
			})
		}
		wait := time.NewTimer(rescan)
		select {
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		case <-wait.C:
		}
	}
}

// listenTo subscribes on one server.
func listenTo(ctx context.Context, client interface {
	Subscribe(ctx context.Context, channels ...string) *redis.PubSub
}, s Subscriber) error {
	sub := client.Subscribe(ctx)
	defer sub.Close()
	want := 0
	if s.Maintenance != nil {
		want++
		if err := sub.Subscribe(ctx, maintenanceChannel); err != nil {
			return unavailable(diagnose(err))
		}
	}
	if s.Expired != nil {
		want++
		if err := sub.PSubscribe(ctx, expiredPattern); err != nil {
			return unavailable(diagnose(err))
		}
	}
	stands := 0
	for {
		msg, err := sub.ReceiveTimeout(ctx, quiet)
		switch m := msg.(type) {
		case *redis.Subscription:
			if stands++; stands == want && s.Subscribed != nil {
				s.Subscribed()
			}
		case *redis.Message:
			if m.Channel == maintenanceChannel {
				s.Maintenance(m.Payload)
			} else {
				s.Expired(m.Payload)
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil {
			continue
		}
		var timeout interface{ Timeout() bool }
		if errors.As(err, &timeout) && timeout.Timeout() && sub.Ping(ctx) == nil {
			continue // quiet, and well
		}
		return &presence.Error{Kind: presence.Unavailable, Message: "the subscription was lost", Err: diagnose(err)}
	}
}
