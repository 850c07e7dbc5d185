package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"
)

const (
	demoTimeout = 90 * time.Second
	groups      = 20 // the users beat in so many groups, spread over the time between beats
	session     = "default"
)

// runDemo runs one variant and returns what was found.
func runDemo(ctx context.Context, o options) (*result, error) {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	began := time.Now()
	h, err := startHost(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() { h.stop(o.keep) }()
	fmt.Printf("\n%d users beat, %d of them fall silent; ttl %s, redis %s, notifications %s\n", o.users, o.silent, o.ttl, o.redis, o.notifications)

	users := make([]string, o.users)
	for i := range users {
		users[i] = fmt.Sprintf("user-%04d", i)
	}
	r := &result{options: o, users: users, silent: map[string]bool{}}
	for _, i := range rand.Perm(o.users)[:o.silent] {
		r.silent[users[i]] = true
	}

	// Two rounds of beats by all, a third in which the silent ones stop one by one, then the others go on
	// until every deadline has passed.
	every := o.ttl / 3
	fall := 2 * every
	total := 2*every + fall + o.ttl + time.Second
	bar := progressbar.NewOptions64(int64(total/time.Millisecond), progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetVisibility(term.IsTerminal(int(os.Stderr.Fd()))),
		progressbar.OptionSetDescription("beating"), progressbar.OptionSetElapsedTime(false), progressbar.OptionSetPredictTime(false),
		progressbar.OptionClearOnFinish())
	start := time.Now()
	stopAt := func(user string, i int) time.Time {
		if r.silent[user] {
			return start.Add(2*every + fall*time.Duration(i)/time.Duration(o.users))
		}
		return start.Add(total)
	}
	g, beatCtx := errgroup.WithContext(ctx)
	var retried atomic.Int64
	for n := range groups {
		g.Go(func() error {
			next := start.Add(every * time.Duration(n) / groups)
			for next.Before(start.Add(total)) {
				if err := until(beatCtx, next); err != nil {
					return err
				}
				beats := []map[string]any{}
				for i := n; i < len(users); i += groups {
					if time.Now().Before(stopAt(users[i], i)) {
						beats = append(beats, map[string]any{"user": users[i], "session": session, "ttlSeconds": int(o.ttl.Seconds())})
					}
				}
				retries, err := h.retry(beatCtx, "POST", "/api/heartbeats", map[string]any{"heartbeats": beats}, nil)
				if err != nil {
					return fmt.Errorf("beat: %w", err)
				}
				retried.Add(int64(retries))
				next = next.Add(every)
			}
			return nil
		})
	}
	if o.kill {
		g.Go(func() error {
			if err := until(beatCtx, start.Add(2*every+o.ttl+fall/2)); err != nil {
				return err
			}
			return r.killHandler(beatCtx, h)
		})
	}
	g.Go(func() error {
		for time.Since(start) < total {
			_ = bar.Set64(int64(time.Since(start) / time.Millisecond)) // a progress bar that fails is no fault
			if err := until(beatCtx, time.Now().Add(100*time.Millisecond)); err != nil {
				return err
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	_ = bar.Finish()
	r.retried = retried.Load()
	if err := r.collect(ctx, h); err != nil {
		return nil, err
	}
	r.took = time.Since(began)
	return r, nil
}

// until waits for a time.
func until(ctx context.Context, t time.Time) error {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// killHandler kills the handler without notice and measures how long the next one takes.
func (r *result) killHandler(ctx context.Context, h *host) error {
	ready, err := h.waitReady(ctx, 0)
	if err != nil {
		return err
	}
	p, err := os.FindProcess(ready.HandlerPID)
	if err != nil {
		return fmt.Errorf("find the handler: %w", err)
	}
	killed := time.Now()
	if err := p.Kill(); err != nil {
		return fmt.Errorf("kill the handler: %w", err)
	}
	if _, err := h.waitReady(ctx, ready.HandlerPID); err != nil {
		return err
	}
	r.restarted = time.Since(killed)
	for {
		var health struct {
			Parts struct {
				Listener struct {
					LastSweepAt *time.Time `json:"lastSweepAt"`
				} `json:"listener"`
			} `json:"parts"`
		}
		if _, err := h.retry(ctx, "GET", "/api/health", nil, &health); err != nil {
			return err
		}
		if at := health.Parts.Listener.LastSweepAt; at != nil && at.After(killed) {
			r.firstSweep = at.Sub(killed)
			return nil
		}
		if err := until(ctx, time.Now().Add(2*time.Millisecond)); err != nil {
			return err
		}
	}
}

// collect asks the API for every user's events until all chains are complete, and for the final states.
func (r *result) collect(ctx context.Context, h *host) error {
	deadline := time.Now().Add(15 * time.Second)
	for {
		r.events = map[string][]event{}
		var mu sync.Mutex
		g, reads := errgroup.WithContext(ctx)
		g.SetLimit(16)
		for _, user := range r.users {
			g.Go(func() error {
				var page struct {
					Events []event `json:"events"`
				}
				if _, err := h.retry(reads, "GET", "/api/users/"+user+"/events?limit=100", nil, &page); err != nil {
					return fmt.Errorf("read the events of %s: %w", user, err)
				}
				mu.Lock()
				defer mu.Unlock()
				r.events[user] = page.Events
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return err
		}
		if r.judge(); r.lost == 0 && r.incomplete == 0 || time.Now().After(deadline) {
			break
		}
		if err := until(ctx, time.Now().Add(200*time.Millisecond)); err != nil {
			return err
		}
	}
	var answer struct {
		Users []struct {
			User   string `json:"user"`
			Status string `json:"status"`
		} `json:"users"`
	}
	for from := 0; from < len(r.users); from += 1000 {
		query := map[string]any{"users": r.users[from:min(from+1000, len(r.users))]}
		if _, err := h.retry(ctx, "POST", "/api/users/query", query, &answer); err != nil {
			return fmt.Errorf("read the final states: %w", err)
		}
		for _, u := range answer.Users {
			if u.Status == "offline" != r.silent[u.User] {
				r.wrongStates++
			}
		}
	}
	return nil
}
