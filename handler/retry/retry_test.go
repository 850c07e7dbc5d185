package retry_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/retry"
)

var quick = retry.Backoff{First: time.Millisecond, Most: 2 * time.Millisecond}

func TestDo(t *testing.T) {
	t.Parallel()
	passing := errors.New("503")
	permanent := fmt.Errorf("try: %w", &fault.Error{Kind: fault.Invalid, Message: "bad"})
	for name, tt := range map[string]struct {
		faults []error
		want   error
		tries  int
	}{
		"at once":     {nil, nil, 1},
		"passes":      {[]error{passing, passing, passing}, nil, 4},
		"permanent":   {[]error{passing, permanent, passing}, permanent, 2},
		"unavailable": {[]error{&fault.Error{Kind: fault.Unavailable}}, nil, 2},
		"its own end": {[]error{context.DeadlineExceeded}, nil, 2},
	} {
		tries := 0
		err := quick.Do(t.Context(), nil, func() error {
			tries++
			if tries <= len(tt.faults) {
				return tt.faults[tries-1]
			}
			return nil
		})
		if !errors.Is(err, tt.want) || tries != tt.tries {
			t.Errorf("%s: %v after %d tries", name, err, tries)
		}
	}
}

// TestDoEndsWithItsContext: the fault that was waited for is told, not that the time was over.
func TestDoEndsWithItsContext(t *testing.T) {
	t.Parallel()
	fault := errors.New("503")
	ctx, cancel := context.WithCancel(t.Context())
	tries := 0
	err := quick.Do(ctx, nil, func() error {
		if tries++; tries == 3 {
			cancel()
			return ctx.Err()
		}
		return fault
	})
	if !errors.Is(err, fault) || tries != 3 {
		t.Errorf("%v after %d tries", err, tries)
	}
	if err := quick.Do(ctx, nil, func() error { return ctx.Err() }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestDoWaitsForWhatIsAway: no try while it is away, and one as soon as it is back.
func TestDoWaitsForWhatIsAway(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	looks, tries := 0, 0
	look := func() bool {
		if looks++; looks == 5 {
			away.Store(false)
		}
		return away.Load()
	}
	slow := retry.Backoff{First: time.Hour, Most: time.Hour}
	err := slow.Do(t.Context(), look, func() error {
		if tries++; tries == 1 {
			away.Store(true)
			return errors.New("connection refused")
		}
		return nil
	})
	if err != nil || tries != 2 {
		t.Errorf("%v after %d tries", err, tries)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = slow.Do(ctx, func() bool { cancel(); return true }, func() error { return errors.New("connection refused") })
	if err == nil || err.Error() != "connection refused" {
		t.Errorf("ended while away: %v", err)
	}
}

func TestReserve(t *testing.T) {
	t.Parallel()
	if ctx, done := retry.Reserve(t.Context()); ctx != t.Context() {
		t.Error("a context without a deadline got one")
	} else {
		done()
	}
	for of, kept := range map[time.Duration]time.Duration{time.Minute: 6 * time.Second, time.Hour: 10 * time.Second} {
		ctx, cancel := context.WithTimeout(t.Context(), of)
		defer cancel()
		most, done := retry.Reserve(ctx)
		defer done()
		outer, _ := ctx.Deadline()
		if inner, ok := most.Deadline(); !ok || outer.Sub(inner).Round(100*time.Millisecond) != kept {
			t.Errorf("of %v it keeps %v, want %v", of, outer.Sub(inner), kept)
		}
	}
}
