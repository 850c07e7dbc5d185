package redisconn

import (
	"strconv"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Clock tells the time of one server of Redis, in which requests are dated: by when they were received, and not by when
// a script gets to run, which may be long after. A zero Clock is of no use; see NewClock and Client.ClockOf.
//
// The process times a receipt with its monotonic clock. How far Redis's clock is from that follows from each reply with
// a time of Redis in it: that time lies between the sending and the arrival. The first such reply is the answer to TIME,
// which is asked on every new connection before anything else. A distance is kept for as long as no reply contradicts
// it, so that all that came in one after the other is dated in that order, however long the round trips take.
type Clock struct {
	mu sync.Mutex
	dial
	// least and most bound the distance as far as the replies until learnt tell.
	least, most, learnt time.Duration
}

// dial is how a clock turns the process's time into that of Redis.
type dial struct {
	begun time.Time // what the process counts from; it has a monotonic reading
	known bool
	// distance is the time of Redis, since 1970, less the time since begun. Until it is known it is what the process's
	// own clock says.
	distance time.Duration
	// What was received before turn has the distance from before it, so that a correction changes the order of nothing.
	before, turn time.Duration
}

const (
	// clockDrift is the time in which two clocks may go apart by one unit: 500 millionths, the most that ntpd corrects.
	clockDrift = 2000
	// clockStep is the least change that is no correction: another server, or a clock that was set. It moves what is
	// dated already and not yet sent, too.
	clockStep = time.Second
)

// NewClock returns a clock of a server that nothing is known of yet: it takes its time for that of this process.
func NewClock() *Clock {
	now := time.Now()
	distance := time.Duration(now.UnixNano())
	return &Clock{dial: dial{begun: now, distance: distance, before: distance}}
}

// instant returns the time of Redis at which something was received, in ms; zero stands for now.
func (d *dial) instant(received time.Time) int64 {
	if received.IsZero() {
		received = time.Now()
	}
	at := received.Sub(d.begun)
	if at < d.turn {
		return floorMillis(at + d.before)
	}
	return floorMillis(max(at+d.distance, d.turn+d.before))
}

func floorMillis(d time.Duration) int64 { return time.Unix(0, int64(d)).UnixMilli() }

// Learn takes in that Redis said its time, exact to a precision, in the answer to what was sent and received then.
func (c *Clock) Learn(redis time.Time, precision time.Duration, sent, received time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	said, now := time.Duration(redis.UnixNano()), received.Sub(c.begun)
	least, most := said-now, said+precision-sent.Sub(c.begun)
	drift := max(now-c.learnt, 0) / clockDrift
	if l, m := max(least, c.least-drift), min(most, c.most+drift); c.known && l <= m {
		least, most = l, m
	}
	c.least, c.most, c.learnt = least, most, now
	distance := min(max(c.distance, least), most)
	switch change := distance - c.distance; {
	case !c.known, change >= clockStep, change <= -clockStep:
		c.known, c.distance, c.turn = true, least+(most-least)/2, 0
		c.before = c.distance
	case change != 0:
		c.before, c.turn, c.distance = c.distance, now, distance
	}
}

// startLike has a clock of which nothing is known yet take another for a first guess.
func (c *Clock) startLike(other *Clock) {
	other.mu.Lock()
	guess := other.dial
	other.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known {
		c.dial, c.known = guess, false
	}
}

// Dating dates the items of one call, and is an argument of it: by how many ms all that it dated must be moved. That is
// made when the call is written to a connection, which may be one to another server than was there before. It is for one
// goroutine and one call.
type Dating struct {
	dial
	clock *Clock
	sent  time.Time // when the call was written
	moved int64     // what was written then
	text  [24]byte
}

// Dating begins a call to the clock's server.
func (c *Clock) Dating() *Dating {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &Dating{dial: c.dial, clock: c}
}

// MarshalBinary returns the argument. It implements encoding.BinaryMarshaler, by which go-redis writes arguments.
func (d *Dating) MarshalBinary() ([]byte, error) {
	d.sent, d.moved = time.Now(), 0
	d.clock.mu.Lock()
	change := d.clock.distance - d.distance
	d.clock.mu.Unlock()
	if !d.known || change >= clockStep || change <= -clockStep {
		d.moved = floorMillis(change)
	}
	return strconv.AppendInt(d.text[:0], d.moved, 10), nil
}

// Learn takes in the time in ms that the server told in its answer to the call.
func (d *Dating) Learn(ms int64) {
	d.clock.Learn(time.UnixMilli(ms), time.Millisecond, d.sent, time.Now())
}

// Received returns a script's argument for when something was received, in ms, or was enqueued by the clock of a broker,
// which is taken for that of Redis. The latter is negative, as it must not be moved. A zero at stands for now, a zero
// enqueued for none.
func (d *Dating) Received(at, enqueued time.Time) int64 {
	if !enqueued.IsZero() {
		return -max(enqueued.UnixMilli(), 1)
	}
	return d.instant(at)
}

// Applied returns the instant in ms that a script took an argument of Received for, when it ran at now.
func (d *Dating) Applied(at, now int64) int64 {
	if at < 0 {
		return min(-at, now)
	}
	return min(at+d.moved, now)
}

// ClockOf returns the clock of the server that has a key, as far as is known; one that is known by its name alone where
// several servers are behind one address.
func (c *Client) ClockOf(key string) *Clock {
	l := c.live.Load()
	switch {
	case l != nil && l.cluster != nil:
		if node, err := l.cluster.nodeOf(c.open, key); err == nil {
			return c.clock(node)
		}
	case c.apart.Load():
		// Each slot may be on a server with a clock of its own.
		own := c.clock("slot of " + hashTag(key))
		own.startLike(c.clock(""))
		return own
	}
	return c.clock("")
}

// clock returns that of a server: of a node of a cluster by its address, "" for the single server.
func (c *Client) clock(node string) *Clock {
	if known, ok := c.clocks.Load(node); ok {
		return known.(*Clock)
	}
	known, _ := c.clocks.LoadOrStore(node, NewClock())
	return known.(*Clock)
}

// newNode makes the client of a node of a cluster.
func (c *Client) newNode(opt *redis.Options) *redis.Client {
	opt.OnConnect = c.introduce(opt.Addr)
	return redis.NewClient(opt)
}
