package redisconn

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
)

// numbered is an item of a lane.
type numbered struct {
	Request
	n int
}

// held is a lane whose flushes the test lets through one by one.
type held struct {
	*Lane[*numbered]
	begun chan []int
	end   chan struct{}
}

func newHeld() *held {
	h := &held{begun: make(chan []int), end: make(chan struct{})}
	h.Lane = newLane(func(items []*numbered) {
		numbers := make([]int, len(items))
		for i, it := range items {
			numbers[i] = it.n
		}
		h.begun <- numbers
		<-h.end
	})
	return h
}

// stopDuringFlush stops the lane while a flush is under way, and lets that end once begun is closed: Stop waits for it.
func (h *held) stopDuringFlush(t *testing.T, begun <-chan struct{}) {
	t.Helper()
	stopped := make(chan struct{})
	go func() {
		h.Stop(t.Context())
		close(stopped)
	}()
	<-begun
	select {
	case <-stopped:
		t.Error("it did not wait for the flush")
	default:
	}
	h.end <- struct{}{}
	<-stopped
}

func TestLaneSharesRoundTrips(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	h := newHeld()
	h.put(&numbered{n: -1})
	if first := <-h.begun; !slices.Equal(first, []int{-1}) {
		t.Fatal(first)
	}
	// What comes during a flush goes together with the next one, in order and at most laneBatch at a time.
	var want []int
	for i := range laneQueue {
		if !h.put(&numbered{n: i}) {
			t.Fatalf("item %d was refused", i)
		}
		want = append(want, i)
	}
	if h.put(&numbered{}) {
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
	if !h.put(&numbered{}) {
		t.Error("there is room again")
	}
	// stop waits for the flush that is under way, and no other follows.
	h.stopDuringFlush(t, h.quit)
	h.Stop(t.Context())
	if err := goleak.Find(leaks); err != nil {
		t.Error(err)
	}
}

func TestLaneIsStoppedBeforeItsFirstItem(t *testing.T) {
	t.Parallel()
	h := newHeld()
	h.Stop(t.Context())
	h.put(&numbered{n: 1})
	select {
	case <-h.ended:
	case items := <-h.begun:
		t.Errorf("flushed %v after stop", items)
	}
}

// TestLaneFlushesOneItemAtOnce: as long as no two come at the same time, whoever brings an item flushes it.
func TestLaneFlushesOneItemAtOnce(t *testing.T) {
	t.Parallel()
	h := newHeld()
	byItself := func(item int) <-chan bool {
		did := make(chan bool, 1)
		go func() { did <- h.flushAlone(&numbered{n: item}) }()
		return did
	}
	next := func(want ...int) {
		t.Helper()
		if items := <-h.begun; !slices.Equal(items, want) {
			t.Fatalf("flushed %v, want %v", items, want)
		}
	}
	if h.flushAlone(&numbered{n: 0}) {
		t.Fatal("nothing was flushed before, so it is not known whether others come")
	}
	h.put(&numbered{n: 1})
	next(1)
	if h.flushAlone(&numbered{n: 0}) {
		t.Fatal("a flush is under way")
	}
	h.end <- struct{}{}
	for !h.alone.Load() {
		runtime.Gosched()
	}
	did := byItself(2)
	next(2)
	h.put(&numbered{n: 3}) // one that comes meanwhile waits, with all after it
	h.put(&numbered{n: 4})
	h.end <- struct{}{}
	if !<-did {
		t.Error("it was not flushed by itself")
	}
	next(3, 4)
	h.end <- struct{}{}
	h.put(&numbered{n: 5})
	next(5)
	h.end <- struct{}{}
	for !h.alone.Load() {
		runtime.Gosched()
	}
	did = byItself(6)
	next(6)
	h.stopDuringFlush(t, h.ended)
	if !<-did || h.flushAlone(&numbered{n: 7}) {
		t.Error("after stop nothing is flushed")
	}
}

func TestLaneStopEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h := newHeld()
	h.put(&numbered{n: 1})
	<-h.begun
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	h.Stop(ctx)
	h.end <- struct{}{}
	<-h.ended
}

// TestRequestsEndWithTheLane: a request that waits when the lane is stopped gets an answer, also without a deadline.
func TestRequestsEndWithTheLane(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
	defer client.Close()
	store := newCountStore(client, 1)
	if err := store.ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Pause()
	defer server.Resume()
	var requests sync.WaitGroup
	var left atomic.Int64
	for range laneBatch + 10 { // more than one flush takes
		requests.Go(func() {
			_, err := store.add(context.Background(), "u")
			if fault.KindOf(err) != fault.Unavailable {
				t.Error(err)
			}
			if errors.Is(err, errLaneEnded) {
				left.Add(1)
			}
		})
	}
	testkit.Eventually(t, "requests wait", func(context.Context, *redis.Client) (bool, error) {
		return len(store.lane.queue) > 0, nil
	}, server)
	closed := make(chan struct{})
	go func() {
		store.close()
		close(closed)
	}()
	<-store.lane.quit
	_ = client.Close() // ends the flushes that are under way
	<-closed
	requests.Wait()
	if left.Load() == 0 {
		t.Error("no request was waiting")
	}
	if _, err := store.add(context.Background(), "u"); !errors.Is(err, errLaneEnded) {
		t.Error(err)
	}
}

// TestAPanicInAFlushEndsIt: it is the error of its requests, and the next ones are served.
func TestAPanicInAFlushEndsIt(t *testing.T) {
	t.Parallel()
	c := clientOfOneServer(t)
	faulty := true
	lane := NewLane(c, func(context.Context, []*numbered) error {
		if faulty {
			panic("no clock")
		}
		return nil
	})
	defer lane.Stop(t.Context())
	_, err := lane.Share(&numbered{Request: NewRequest(t.Context())})
	if fault.KindOf(err) != fault.Internal || !strings.Contains(err.Error(), "no clock") {
		t.Fatal(err)
	}
	faulty = false
	if handled, err := lane.Share(&numbered{Request: NewRequest(t.Context())}); !handled || err != nil {
		t.Fatal(handled, err)
	}
}
