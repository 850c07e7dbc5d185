package redisstore

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
)

// held is a lane whose flushes the test lets through one by one.
type held struct {
	*lane[int]
	begun chan []int
	end   chan struct{}
}

func newHeld() *held {
	h := &held{begun: make(chan []int), end: make(chan struct{})}
	h.lane = newLane(func(items []int) {
		h.begun <- slices.Clone(items)
		<-h.end
	})
	return h
}

func TestLaneSharesRoundTrips(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	h := newHeld()
	h.put(-1)
	if first := <-h.begun; !slices.Equal(first, []int{-1}) {
		t.Fatal(first)
	}
	// What comes during a flush goes together with the next one, in order and at most laneBatch at a time.
	var want []int
	for i := range laneQueue {
		if !h.put(i) {
			t.Fatalf("item %d was refused", i)
		}
		want = append(want, i)
	}
	if h.put(laneQueue) {
		t.Error("one more than fits was taken")
	}
	var got []int
	for len(got) < len(want) {
		h.end <- struct{}{}
		items := <-h.begun
		if len(items) != laneBatch {
			t.Errorf("%d items in a flush while more waited", len(items))
		}
		got = append(got, items...)
	}
	if !slices.Equal(got, want) {
		t.Error("the items are not the same, or not in order")
	}
	if !h.put(0) {
		t.Error("there is room again")
	}
	// stop waits for the flush that is under way, and no other follows.
	stopped := make(chan struct{})
	go func() {
		h.stop(t.Context())
		close(stopped)
	}()
	<-h.quit
	select {
	case <-stopped:
		t.Error("it did not wait for the flush")
	default:
	}
	h.end <- struct{}{}
	<-stopped
	h.stop(t.Context())
	if err := goleak.Find(leaks); err != nil {
		t.Error(err)
	}
}

func TestLaneIsStoppedBeforeItsFirstItem(t *testing.T) {
	t.Parallel()
	h := newHeld()
	h.stop(t.Context())
	h.put(1)
	select {
	case <-h.ended:
	case items := <-h.begun:
		t.Errorf("flushed %v after stop", items)
	}
}

func TestLaneStopEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h := newHeld()
	h.put(1)
	<-h.begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.stop(ctx)
	h.end <- struct{}{}
	<-h.ended
}

// TestRequestsEndWithTheStore: a request that waits when the store is closed gets an answer, also without a deadline.
func TestRequestsEndWithTheStore(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
	defer client.Close()
	store := New(client, Config{Partitions: 1})
	if err := store.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Pause()
	defer server.Resume()
	var requests sync.WaitGroup
	var left atomic.Int64
	for range laneBatch + 10 { // more than one flush takes
		for _, call := range []func() error{
			func() error {
				_, err := store.Heartbeats(context.Background(), []presence.Beat{{User: "u", Session: "s", TTL: seconds(10)}})
				return err
			},
			func() error {
				_, err := store.Users(context.Background(), []string{"u"})
				return err
			},
		} {
			requests.Go(func() {
				err := call()
				if presence.KindOf(err) != presence.Unavailable {
					t.Error(err)
				}
				if errors.Is(err, errLaneEnded) {
					left.Add(1)
				}
			})
		}
	}
	testkit.Eventually(t, "requests wait", func(context.Context, *redis.Client) (bool, error) {
		return len(store.beats.queue) > 0 && len(store.reads.queue) > 0, nil
	}, server)
	closed := make(chan struct{})
	go func() {
		store.Close()
		close(closed)
	}()
	<-store.beats.quit
	_ = client.Close() // ends the flushes that are under way
	<-closed
	requests.Wait()
	if left.Load() == 0 {
		t.Error("no request was waiting")
	}
	if _, err := store.Heartbeats(context.Background(), []presence.Beat{{User: "u", Session: "s", TTL: seconds(10)}}); !errors.Is(err, errLaneEnded) {
		t.Error(err)
	}
}

// TestAPanicInAFlushEndsIt: it is the error of its requests, and the next ones are served.
func TestAPanicInAFlushEndsIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.store.clockOf = func(int) *clock { panic("no clock") }
	beat := []presence.Beat{{User: "u", Session: "s", TTL: seconds(10)}}
	if _, err := b.store.Heartbeats(t.Context(), beat); presence.KindOf(err) != presence.Internal || !strings.Contains(err.Error(), "no clock") {
		t.Fatal(err)
	}
	b.store.clockOf = b.store.clockOfServer
	if out, err := b.store.Heartbeats(t.Context(), beat); err != nil || out[0].Change != presence.ChangeOnline {
		t.Fatal(out, err)
	}
}
