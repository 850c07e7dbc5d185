package presence

import (
	"sync/atomic"
	"time"
)

// pace sets how soon the next beat is asked for: ttl/3, growing to ttl/2 as the store slows down, so that an
// overloaded app slows its clients down instead of failing them (design D13). The zero value is ready.
type pace struct {
	latency atomic.Int64 // moving average of the store's latency, in nanoseconds
}

// The store's latency at which the pace begins to slow down, and where it is slowest.
const (
	easyLatency = 20 * time.Millisecond
	fullLatency = 500 * time.Millisecond
)

// observe takes the latency of one call of the store into the average; the newest counts an eighth. A lost
// race with another observer loses one sample of many.
func (p *pace) observe(d time.Duration) {
	old := p.latency.Load()
	p.latency.Store(old + (int64(d)-old)/8)
}

// after returns when to beat again: whole seconds, at least one.
func (p *pace) after(ttl time.Duration) time.Duration {
	load := float64(time.Duration(p.latency.Load())-easyLatency) / float64(fullLatency-easyLatency)
	load = min(max(load, 0), 1)
	wait := ttl/3 + time.Duration(load*float64(ttl/2-ttl/3))
	return max(wait.Truncate(time.Second), time.Second)
}
