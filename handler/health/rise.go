package health

import (
	"sync"
	"time"
)

// Rises remembers when counters last rose, as far as looks at them tell. The zero value has seen none. It is safe for
// concurrent use.
type Rises struct {
	mu   sync.Mutex
	seen map[string]rise
}

type rise struct {
	value int64 // at the last look
	from  int64 // before it began to rise
	at    time.Time
}

// Within returns by how much a counter rose, from when it began to, when it last rose no longer than the given time
// ago; 0 when it did not. A counter that nobody looked at before began at 0.
func (r *Rises) Within(d time.Duration, counter string, value int64, now time.Time) int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen == nil {
		r.seen = map[string]rise{}
	}
	s := r.seen[counter]
	if value < s.value { // it was begun anew
		s = rise{}
	}
	if now.Sub(s.at) > d {
		s.from = s.value
	}
	if value > s.value {
		s.value, s.at = value, now
	}
	r.seen[counter] = s
	return s.value - s.from
}
