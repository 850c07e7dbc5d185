package main

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"

	"userconnectivity/handler/triggers"
)

// TestHangingCheck has a part of health ignore its deadline: health answers all the same, and no second check of the
// part is begun.
func TestHangingCheck(t *testing.T) {
	t.Parallel()
	a := &app{log: slog.New(slog.DiscardHandler)}
	end := make(chan struct{})
	var begun atomic.Int32
	hang := func(context.Context) triggers.Part {
		begun.Add(1)
		<-end
		return triggers.Part{"status": "ok"}
	}
	var calls sync.WaitGroup
	for range 3 {
		calls.Go(func() {
			if p := a.look(t.Context(), "redis", hang); p["status"] != "down" || p["detail"] != "no answer within 1.8s" {
				t.Errorf("part %v", p)
			}
		})
	}
	calls.Wait()
	if n := begun.Load(); n != 1 {
		t.Errorf("%d checks at the same time", n)
	}
	var last sync.WaitGroup
	last.Go(func() {
		if p := a.look(t.Context(), "redis", hang); p["status"] != "ok" {
			t.Errorf("after the hanging check ended: %v", p)
		}
	})
	close(end)
	last.Wait()
}

func TestCheckThatPanics(t *testing.T) {
	t.Parallel()
	a := &app{log: slog.New(slog.DiscardHandler)}
	p := a.look(t.Context(), "queue", func(context.Context) triggers.Part { panic("boo") })
	if p["status"] != "degraded" || p["detail"] != "the check panicked: boo" {
		t.Errorf("part %v", p)
	}
}
