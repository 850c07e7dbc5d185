package testkit

import (
	"bytes"
	"strings"
	"sync"
)

// Output is what a log or a process wrote. It may be read while it is written to.
type Output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write never fails.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// String returns everything so far.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// Count returns how often a part occurs in it so far.
func (o *Output) Count(part string) int { return strings.Count(o.String(), part) }
