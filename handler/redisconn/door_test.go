package redisconn

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"userconnectivity/handler/fault"
)

// clientOfOneServer returns a client that takes itself for connected to one server.
func clientOfOneServer(t *testing.T) *Client {
	t.Helper()
	c := NewClient(Endpoint{}, "door", nil)
	t.Cleanup(func() { c.live.Store(nil) })
	c.live.Store(&live{})
	return c
}

// TestTurns: one of each class is inside, the others of the class wait in the order in which they came, and a class waits
// for no other.
func TestTurns(t *testing.T) {
	t.Parallel()
	c := clientOfOneServer(t)
	for class := range classes {
		if _, err := c.Enter(t.Context(), class); err != nil {
			t.Fatalf("class %d: %v", class, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Enter(ctx, Bulk); fault.KindOf(err) != fault.Unavailable || !errors.Is(err, context.Canceled) {
		t.Errorf("whose request has ended: %v", err)
	}
	c = clientOfOneServer(t)
	leave, err := c.Enter(t.Context(), Bulk)
	if err != nil {
		t.Fatal(err)
	}
	var order []int
	var waiting sync.WaitGroup
	for i := range 5 {
		began := make(chan struct{})
		waiting.Go(func() {
			close(began)
			_ = c.Through(t.Context(), Bulk, func() error { order = append(order, i); return nil })
		})
		<-began
		time.Sleep(20 * time.Millisecond) // it waits
	}
	leave()
	waiting.Wait()
	if fmt.Sprint(order) != "[0 1 2 3 4]" {
		t.Errorf("in the order %v", order)
	}
	func() {
		defer func() { _ = recover() }()
		_ = c.Through(t.Context(), Background, func() error { panic("a fault") })
	}()
	if leave, err = c.Enter(t.Context(), Background); err != nil {
		t.Fatalf("after a panic: %v", err)
	}
	leave()
}

// TestTurnsOnACluster: a call to a node that hangs holds up no other node's, but for bulk calls, which go to all.
func TestTurnsOnACluster(t *testing.T) {
	t.Parallel()
	c := clientOfOneServer(t)
	c.live.Store(&live{server: Server{Cluster: true}})
	for range 3 {
		for _, class := range []Class{Single, Background} {
			if _, err := c.Enter(t.Context(), class); err != nil {
				t.Fatal(err)
			}
		}
	}
}
