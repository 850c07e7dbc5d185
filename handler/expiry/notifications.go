package expiry

import (
	"context"
	"time"

	"userconnectivity/handler/redisconn"
)

// KeyExpired wakes the sweep for the partition of a key that expired. Keys that are no lease of ours wake nobody; those that
// match a route become events.
func (l *Listener) KeyExpired(key string) {
	p, ok := l.store.LeasePartition(key)
	if !ok {
		l.foreignExpired(key)
		return
	}
	l.mu.Lock()
	l.state.ExpiredEvents++
	l.mu.Unlock()
	l.expired[p].Store(true)
	l.wakeUp()
}

// WakeAll wakes the sweep for every partition. Call it whenever the subscription to expired events stands
// (again): what expired before woke nobody.
func (l *Listener) WakeAll() {
	l.asks.Store(settingsAsks) // what stands again may be another server, and a fault is over
	for p := range l.expired {
		l.expired[p].Store(true)
	}
	l.wakeUp()
}

func (l *Listener) wakeUp() {
	select {
	case l.wake <- struct{}{}:
	default: // it is awake already
	}
}

// settingsLoop keeps notify-keyspace-events on where the server allows it, measures the oldest entry, and logs.
func (l *Listener) settingsLoop(ctx context.Context) {
	var checked, reported time.Time
	told := l.State()
	for ctx.Err() == nil {
		now := time.Now()
		if asks := l.asks.Load(); asks > 0 || now.Sub(checked) >= settingsCheck {
			checked = now
			left := max(asks-1, 0)
			if l.checkNotifications(ctx) != redisconn.NotificationsUnknown {
				left = 0
			}
			l.asks.CompareAndSwap(asks, left)
		}
		l.measureOutbox(ctx)
		report := now.Sub(reported) >= reportEvery
		if report {
			reported = now
		}
		told = l.tell(ctx, told, report)
		l.watchdog.settings.Add(1)
		sleep(ctx, time.Second)
	}
}

// checkNotifications asks whether Redis publishes expired events, and remembers and returns the answer.
func (l *Listener) checkNotifications(ctx context.Context) redisconn.Notifications {
	ctx, cancel := context.WithTimeout(ctx, sweepTimeout)
	defer cancel()
	state, err := l.client.EnsureNotifications(ctx)
	detail := ""
	if state != redisconn.NotificationsOn {
		detail = "Redis does not publish expired events, or does not say: the sweep finds every deadline without them. " +
			"To switch them on, set notify-keyspace-events to Ex (Azure Managed Redis: property notifyKeyspaceEvents of the database)"
		if l.relay.to.Routes != "" {
			detail += ". The keys of EXPIRATION_ROUTES are not reported without them"
		}
	}
	if err != nil {
		detail += ". " + err.Error()
	}
	l.mu.Lock()
	changed := l.state.Notifications != state || l.state.NotificationsDetail == "" && detail != ""
	l.state.Notifications, l.state.NotificationsDetail = state, detail
	l.mu.Unlock()
	if changed {
		l.log.InfoContext(ctx, "expired events", "notifications", string(state), "detail", detail)
	}
	return state
}
