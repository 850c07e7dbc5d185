package triggers

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestSharedTimeout: requests of a tick share an end, that of the first of them; values are their own.
func TestSharedTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const timeout, tick = 10 * time.Second, 100 * time.Millisecond
		limit := &sharedTimeout{timeout: timeout, tick: tick}
		type key struct{}
		request := func(name string) context.Context {
			return limit.of(context.WithValue(t.Context(), key{}, name), time.Now())
		}
		first := request("first")
		time.Sleep(tick - 1)
		second := request("second")
		time.Sleep(time.Nanosecond)
		third := request("third")
		if first.Done() != second.Done() || second.Done() == third.Done() {
			t.Error("the requests of a tick, and no others, share an end")
		}
		if first.Value(key{}) != "first" || second.Value(key{}) != "second" {
			t.Error("a request has the values of another")
		}
		began := time.Now()
		if end, ok := third.Deadline(); !ok || end.Sub(began) != timeout {
			t.Errorf("the third ends %v after it began", end.Sub(began))
		}
		<-first.Done()
		if err := second.Err(); !errors.Is(err, context.DeadlineExceeded) || third.Err() != nil {
			t.Errorf("%v, %v", err, third.Err())
		}
		if took := time.Since(began); took != timeout-tick {
			t.Errorf("the first ended after %v", tick+took)
		}
		<-third.Done()
	})
}
