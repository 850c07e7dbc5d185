package redisconn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/fault"
)

const (
	// expiredPattern matches the channels of expired events of every database.
	expiredPattern = "__keyevent@*__:expired"
	// maintenanceChannel is where Azure Cache for Redis announces maintenance.
	maintenanceChannel = "AzureRedisEvents"
	// quiet is how long a subscription may be silent before a ping checks it, and how long the answer may take.
	quiet = 5 * time.Second
	// rescan is how often the primaries of a cluster are looked up again.
	rescan = 5 * time.Second
	// resubscribeWait and longestWait bound how long a lost subscription waits before it is made again; the wait
	// doubles while none stands.
	resubscribeWait = 100 * time.Millisecond
	longestWait     = 3 * time.Second
)

// Notifications says whether Redis publishes expired events.
type Notifications string

// What is known of the setting notify-keyspace-events.
const (
	NotificationsOn      Notifications = "on"
	NotificationsOff     Notifications = "off"
	NotificationsUnknown Notifications = "unknown"
)

// EnsureNotifications checks that Redis publishes expired events, on a cluster each primary, and switches it on where
// the server allows. Expired events only wake the sweep: without them the sweep still wakes for each deadline
// (design D1).
func (c *Client) EnsureNotifications(ctx context.Context) (Notifications, error) {
	client, err := c.Connect(ctx)
	if err != nil {
		return NotificationsUnknown, err
	}
	cluster, ok := client.(*live).UniversalClient.(*redis.ClusterClient)
	if !ok {
		return c.ensureNotifications(ctx, client)
	}
	var mu sync.Mutex
	worst := NotificationsOn
	err = cluster.ForEachMaster(ctx, func(ctx context.Context, primary *redis.Client) error {
		state, err := c.ensureNotifications(ctx, primary)
		mu.Lock()
		defer mu.Unlock()
		if state != NotificationsOn && worst != NotificationsOff {
			worst = state
		}
		return err
	})
	if err != nil && worst == NotificationsOn {
		worst = NotificationsUnknown // no primary was asked
	}
	return worst, err
}

var errKeepSettings = errors.New("REDIS_SET_NOTIFICATIONS is off")

func (c *Client) ensureNotifications(ctx context.Context, client interface {
	ConfigGet(ctx context.Context, parameter string) *redis.MapStringStringCmd
	ConfigSet(ctx context.Context, parameter, value string) *redis.StatusCmd
},
) (Notifications, error) {
	const setting = "notify-keyspace-events"
	got, err := client.ConfigGet(ctx, setting).Result()
	if err != nil {
		return NotificationsUnknown, fmt.Errorf("read %s: %w", setting, err)
	}
	flags := got[setting]
	if strings.Contains(flags, "E") && strings.ContainsAny(flags, "xA") {
		return NotificationsOn, nil
	}
	if c.KeepSettings {
		return NotificationsOff, fmt.Errorf("set %s to %q: %w", setting, flags+"Ex", errKeepSettings)
	}
	if err := client.ConfigSet(ctx, setting, flags+"Ex").Err(); err != nil {
		return NotificationsOff, fmt.Errorf("set %s to %q: %w", setting, flags+"Ex", err)
	}
	c.log().InfoContext(ctx, "a setting of the Redis server was changed, so that it publishes expired events", "setting", setting, "from", flags, "to", flags+"Ex")
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

// standing is why connections do not stand.
type standing struct {
	mu     sync.Mutex
	faults map[string]error // by node
	broken atomic.Int32     // how many there are
}

// tell takes in that the connection to a node stands, or why it does not. That it was not tried while the circuit
// is open does not hide what was wrong before.
func (s *standing) tell(node string, err error) {
	if err == nil && s.broken.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err == nil:
		delete(s.faults, node)
	case s.faults[node] == nil || !errors.Is(err, errCircuitOpen):
		if s.faults == nil {
			s.faults = map[string]error{}
		}
		s.faults[node] = err
	}
	s.broken.Store(int32(len(s.faults)))
}

// fault returns one of the faults, with what it is about in front where that is one node of several.
func (s *standing) fault(about string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.faults) == 0 {
		return nil
	}
	node := slices.Min(slices.Collect(maps.Keys(s.faults)))
	if node == "" {
		return s.faults[node]
	}
	return fmt.Errorf("%s%s: %w", about, node, s.faults[node])
}

// Subscription returns why the subscription does not stand, with the setting and the cure; nil while it stands or
// nobody called Subscribe. On a cluster it is the fault with one of the primaries.
func (c *Client) Subscription() error { return c.subscribed.fault("subscription with ") }

// Subscribe keeps a subscription until ctx ends, on a cluster one with each primary: one that is lost is made again,
// and one whose credentials grow old is replaced by a new one before it is closed. What is published while both stand
// is told once. lost is told of each loss and each attempt that fails; it may be called by several goroutines at once,
// as may the subscriber. The circuit is told of those alone that stood.
func (c *Client) Subscribe(ctx context.Context, s Subscriber, lost func(error)) {
	if s.Expired == nil && s.Maintenance == nil {
		return
	}
	retry := retry{client: c, lost: lost}
	for ctx.Err() == nil {
		stood := false
		client, err := c.Connect(ctx)
		if err == nil {
			l := client.(*live)
			if l.cluster != nil {
				c.subscribed.tell("", nil)
				c.listenToAll(ctx, l.cluster, s, lost)
				continue
			}
			stood, err = c.listenTo(ctx, "", l.UniversalClient.(*redis.Client), s)
		}
		retry.wait(ctx, stood, err)
	}
}

// retry waits between attempts that fail, longer each time.
type retry struct {
	client *Client
	node   string
	lost   func(error)
	last   time.Duration
}

func (r *retry) wait(ctx context.Context, stood bool, err error) {
	if ctx.Err() != nil {
		return
	}
	if stood {
		r.client.circuit.Lost(r.node)
	}
	r.client.subscribed.tell(r.node, err)
	r.lost(err)
	r.last = min(max(2*r.last, resubscribeWait), longestWait)
	if stood {
		r.last = resubscribeWait
	}
	t := time.NewTimer(r.last - rand.N(r.last/4)) // many processes that lost theirs at once do not come back in step
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// listenToAll subscribes on every primary of a cluster, since each publishes the expired events of its own keys only,
// and follows the cluster as primaries come and go. It returns when the cluster's client is replaced, or ctx ends.
func (c *Client) listenToAll(ctx context.Context, p *primaries, s Subscriber, lost func(error)) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	defer context.AfterFunc(p.replaced, cancel)()
	type ear struct {
		server *redis.Client
		stop   context.CancelFunc
	}
	listening := map[string]ear{}
	ticker := time.NewTicker(c.rescan)
	defer ticker.Stop()
	for {
		found := p.all()
		for addr, e := range listening {
			if found[addr] != e.server {
				e.stop()
				delete(listening, addr)
			}
		}
		for addr, server := range found {
			if listening[addr].server != nil {
				continue
			}
			node, stop := context.WithCancel(ctx)
			listening[addr] = ear{server, stop}
			running.Go(func() { c.keepListening(node, addr, server, s, lost) })
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// keepListening keeps a subscription with one primary of a cluster until ctx ends.
func (c *Client) keepListening(ctx context.Context, node string, server *redis.Client, s Subscriber, lost func(error)) {
	defer c.subscribed.tell(node, nil)
	retry := retry{client: c, node: node, lost: lost}
	for ctx.Err() == nil {
		stood, err := false, c.readyFor(node)
		if err == nil {
			stood, err = c.listenTo(ctx, node, server, s)
		}
		retry.wait(ctx, stood, err)
	}
}

// listenTo keeps a subscription on one server until it is lost, and replaces it before its credentials are too old.
// stood reports whether it ever stood.
func (c *Client) listenTo(ctx context.Context, node string, server *redis.Client, s Subscriber) (stood bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	told := &sharing{Subscriber: s}
	told.Subscribed = func() {
		c.subscribed.tell(node, nil)
		if s.Subscribed != nil {
			s.Subscribed()
		}
	}
	begin := func() *subscription {
		sub := newSubscription(ctx, server)
		running.Go(func() { sub.run(told, c.quiet) })
		return sub
	}
	var before *subscription // goes on until current stands
	var old <-chan time.Time
	current := begin()
	stands := current.stands
	for {
		select {
		case <-ctx.Done():
			return stood, ctx.Err()
		case <-stands:
			stands, stood = nil, true
			if before != nil {
				before.catchUp()
				before.cancel()
				<-before.ended
				before = nil
				current.catchUp() // with all that both brought
				told.share(false)
			}
			if c.endpoint.Life > 0 {
				old = time.After(c.endpoint.Life)
			}
		case <-old:
			told.share(true)
			before, current, old = current, begin(), nil
			stands = current.stands
		case <-current.ended:
			if before == nil {
				return stood, &fault.Error{Kind: fault.Unavailable, Message: "the subscription was lost", Err: c.endpoint.diagnose(current.err)}
			}
			// The one before goes on as long as it can.
			told.share(false)
			before, current, stands = nil, before, nil
			old = time.After(min(c.endpoint.Life, longestWait))
		}
	}
}

// sharing tells the subscriber once what two subscriptions bring while one replaces the other.
type sharing struct {
	Subscriber
	mu   sync.Mutex
	told map[[2]string]bool // nil while there is one subscription
}

func (s *sharing) share(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.told = nil
	if on {
		s.told = map[[2]string]bool{}
	}
}

func (s *sharing) take(channel, payload string) {
	m := [2]string{channel, payload}
	s.mu.Lock()
	again := s.told[m]
	if s.told != nil {
		s.told[m] = true
	}
	s.mu.Unlock()
	switch {
	case again:
	case channel == maintenanceChannel:
		s.Maintenance(payload)
	default:
		s.Expired(payload)
	}
}

// subscription is one connection that listens to a server.
type subscription struct {
	ctx    context.Context //nolint:containedctx // its connection lives as long
	cancel context.CancelFunc
	pubsub *redis.PubSub
	stands chan struct{} // closed once it stands
	ended  chan struct{} // closed when it was lost or cancelled
	err    error         // why, set before ended is closed
	// caughtUp gets one for each answer to catchUp's ping.
	caughtUp chan struct{}
}

func newSubscription(ctx context.Context, server *redis.Client) *subscription {
	ctx, cancel := context.WithCancel(context.WithValue(ctx, oneDial{}, new(atomic.Bool)))
	return &subscription{
		ctx: ctx, cancel: cancel, pubsub: server.Subscribe(ctx),
		stands: make(chan struct{}), ended: make(chan struct{}), caughtUp: make(chan struct{}, 1),
	}
}

// catchUpWord is the text of a ping whose answer tells that all has come in that was published before.
const catchUpWord = "catch up"

// catchUp returns when the subscriber was told of what has been published up to now, or the subscription has ended.
func (s *subscription) catchUp() {
	if s.pubsub.Ping(s.ctx, catchUpWord) != nil {
		return // it has ended
	}
	t := time.NewTimer(CommandTimeout)
	defer t.Stop()
	select {
	case <-s.caughtUp:
	case <-s.ended:
	case <-t.C:
	}
}

func (s *subscription) run(told *sharing, quiet time.Duration) {
	defer close(s.ended)
	defer s.cancel()
	defer s.pubsub.Close()
	s.err = s.listen(told, quiet)
}

func (s *subscription) listen(told *sharing, quiet time.Duration) error {
	want := 0
	if told.Maintenance != nil {
		want++
		if err := s.pubsub.Subscribe(s.ctx, maintenanceChannel); err != nil {
			return err
		}
	}
	if told.Expired != nil {
		want++
		if err := s.pubsub.PSubscribe(s.ctx, expiredPattern); err != nil {
			return err
		}
	}
	stands, pinged := 0, false
	for {
		msg, err := s.pubsub.ReceiveTimeout(s.ctx, quiet)
		if s.ctx.Err() != nil {
			return s.ctx.Err()
		}
		var slow interface{ Timeout() bool }
		switch m := msg.(type) {
		case nil:
			if !errors.As(err, &slow) || !slow.Timeout() || pinged {
				return err
			}
			if err := s.pubsub.Ping(s.ctx); err != nil {
				return err
			}
			pinged = true
			continue
		case *redis.Subscription:
			if stands++; stands == want {
				close(s.stands)
				told.Subscribed()
			}
		case *redis.Message:
			told.take(m.Channel, m.Payload)
		case *redis.Pong:
			if m.Payload == catchUpWord {
				select {
				case s.caughtUp <- struct{}{}:
				default: // nobody waits any more
				}
			}
		}
		pinged = false
	}
}
