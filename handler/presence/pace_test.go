package presence

import (
	"testing"
	"time"
)

// TestPace: a third of the ttl while the store is fast, half of it when it is slow, whole seconds, at least one.
func TestPace(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ latency, ttl, want time.Duration }{
		{0, 45 * time.Second, 15 * time.Second},
		{20 * time.Millisecond, 45 * time.Second, 15 * time.Second},
		{260 * time.Millisecond, 60 * time.Second, 25 * time.Second},
		{500 * time.Millisecond, 60 * time.Second, 30 * time.Second},
		{time.Hour, 60 * time.Second, 30 * time.Second},
		{time.Hour, MaxTTL, 1800 * time.Second},
		{0, 50 * time.Second, 16 * time.Second},
		{0, MinTTL, time.Second},
		{time.Hour, MinTTL, 2 * time.Second},
		{0, time.Second, time.Second},
	} {
		var p pace
		p.latency.Store(int64(tt.latency))
		if got := p.after(tt.ttl); got != tt.want {
			t.Errorf("store at %s, ttl %s: beat after %s, want %s", tt.latency, tt.ttl, got, tt.want)
		}
	}
}

// TestPaceFollowsTheStore: one slow call does not slow the clients down, many do, and they recover.
func TestPaceFollowsTheStore(t *testing.T) {
	t.Parallel()
	const ttl = 60 * time.Second
	var p pace
	p.observe(100 * time.Millisecond)
	if got := p.after(ttl); got != 20*time.Second {
		t.Errorf("after one slow call: %s", got)
	}
	for range 100 {
		p.observe(2 * time.Second)
	}
	if got := p.after(ttl); got != 30*time.Second {
		t.Errorf("after many slow calls: %s", got)
	}
	for range 100 {
		p.observe(time.Millisecond)
	}
	if got := p.after(ttl); got != 20*time.Second {
		t.Errorf("after many fast calls: %s", got)
	}
}
