package expiry

import (
	"context"
	"strings"
	"time"

	"userconnectivity/handler/redisstore"
)

const (
	// foreignWaiting bounds the foreign keys that wait for the script.
	foreignWaiting = 10_000
	// foreignBatch is how many of them are reported in one round trip.
	foreignBatch = 1000
	// foreignRenewal is how often the listener leases are renewed.
	foreignRenewal = time.Second
	// foreignPatience is how long a foreign key may wait, and how long its script may take. Both together are less than
	// the lease: a listener that is late cannot report what the holder of an ended lease has reported already.
	foreignPatience = 2 * time.Second
)

// Foreign counts the foreign keys that expired, of those that match a route, since the process began.
type Foreign struct {
	// Claimed became an event, NotHolder were left to the listener that holds the lease.
	Claimed, NotHolder int64
	// Dropped were too long, too many at once or too old, or Redis refused them. No event tells of them.
	Dropped int64
	// Error is the last fault, "" once it went well again.
	Error string
}

// foreignKey is a key that expired, as an event has it.
type foreignKey struct {
	name string
	at   time.Time
}

// foreignExpired takes in a key that is no lease of ours. It never waits: what there is no room for is dropped.
func (l *Listener) foreignExpired(key string) {
	if l.relay.to.Routes == "" || l.store.Ours(key) {
		return
	}
	name := strings.ToValidUTF8(key, "\uFFFD") // the route is looked up again by what the event has
	if _, ok := l.relay.to.Routes.Queue(name); !ok {
		return
	}
	if len(key) > 0 && len(key) <= redisstore.MaxForeignKey {
		select {
		case l.foreign <- foreignKey{name, time.Now()}:
			return
		default:
		}
	}
	l.countForeign(Foreign{Dropped: 1})
}

// foreignLoop reports the foreign keys that expired. They depend on the notification alone, and only the holder of the
// listener lease makes events of them: best effort (design D7).
func (l *Listener) foreignLoop(ctx context.Context) {
	renew := time.NewTicker(foreignRenewal)
	defer renew.Stop()
	defer l.holdForeign(context.WithoutCancel(ctx), time.Millisecond)
	l.holdForeign(ctx, redisstore.ListenerLease)
	for {
		select {
		case <-ctx.Done():
			return
		case <-renew.C:
			l.holdForeign(ctx, redisstore.ListenerLease)
		case key := <-l.foreign:
			batch := []foreignKey{key}
			for len(batch) < foreignBatch && len(l.foreign) > 0 {
				batch = append(batch, <-l.foreign)
			}
			l.reportForeign(ctx, batch)
		}
	}
}

func (l *Listener) holdForeign(ctx context.Context, lease time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, foreignPatience)
	defer cancel()
	l.noteForeign(l.store.HoldListener(ctx, lease))
}

func (l *Listener) reportForeign(ctx context.Context, batch []foreignKey) {
	ctx, cancel := context.WithTimeout(ctx, foreignPatience)
	defer cancel()
	keys := make([]string, 0, len(batch))
	for _, k := range batch {
		if time.Since(k.at) < foreignPatience {
			keys = append(keys, k.name)
		}
	}
	dropped := int64(len(batch) - len(keys))
	written, err := l.store.KeysExpired(ctx, keys)
	l.noteForeign(err)
	if err != nil { // some may be written: a second call could make a second event
		l.countForeign(Foreign{Dropped: dropped + int64(len(keys))})
		return
	}
	l.countForeign(Foreign{Claimed: int64(written), NotHolder: int64(len(keys) - written), Dropped: dropped})
}

func (l *Listener) countForeign(f Foreign) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Foreign.Claimed += f.Claimed
	l.state.Foreign.NotHolder += f.NotHolder
	l.state.Foreign.Dropped += f.Dropped
}

func (l *Listener) noteForeign(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state.Foreign.Error = ""
	if err != nil {
		l.state.Foreign.Error = err.Error()
	}
}
