package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// outageConnections beat during an outage, each every outagePause.
	outageConnections = 16
	outagePause       = 5 * time.Millisecond
	// stallFor is how long Redis answers nothing: past the time-out of a command, so that the breaker opens.
	stallFor = 6 * time.Second
	// goneFor is how long nothing listens at its address.
	goneFor = 2 * time.Second
	// servedWithin bounds the wait for the end of an outage.
	servedWithin = 30 * time.Second
)

// outages is section G: how fast the handler answers while Redis is away, and how soon it serves again.
func outages(ctx context.Context, p plan, r *report) error {
	redis, err := startRedis(ctx)
	if err != nil {
		return err
	}
	defer redis.stop()
	handler, err := startHandler(ctx, p, redis)
	if err != nil {
		return err
	}
	defer handler.stop()
	for _, outage := range []struct {
		name       string
		begin, end func() error
		lasts      time.Duration
	}{
		{
			"Redis stalls", func() error { return redis.cmd.Process.Signal(syscall.SIGSTOP) },
			func() error { return redis.cmd.Process.Signal(syscall.SIGCONT) }, stallFor,
		},
		{
			"Redis is killed and started again", func() error { redis.kill(); return nil },
			func() error { return redis.launch(ctx) }, goneFor,
		},
	} {
		w := &witness{url: "http://" + handler.addr + "/api/heartbeat"}
		watching, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		for i := range outageConnections {
			running.Go(func() { w.beat(watching, userID(i)) })
		}
		err := func() error {
			defer running.Wait()
			defer stop()
			if err := w.served(ctx, time.Now()); err != nil {
				return err
			}
			if err := outage.begin(); err != nil {
				return err
			}
			if err := sleepUntil(ctx, time.Now().Add(outage.lasts)); err != nil {
				return err
			}
			w.back(time.Now())
			if err := outage.end(); err != nil {
				return err
			}
			answers := time.Now()
			w.back(answers)
			return w.served(ctx, answers)
		}()
		if err != nil {
			return fmt.Errorf("%s: %w", outage.name, err)
		}
		if len(w.deferred) == 0 {
			return fmt.Errorf("%s: no heartbeat was answered 202: %v", outage.name, w.statuses[200:504])
		}
		r.atMost("G", outage.name+": served again after it answers", w.longest(), time.Second)
		r.atMost("G", outage.name+": answers while the breaker is open, p99", percentile(slices.Sorted(slices.Values(w.deferred)), 99), 5*time.Millisecond)
		r.figure("G", outage.name+": answers to heartbeats", "%d times 200, %d times 202 (deferred), %d times 503", w.statuses[200], w.statuses[202], w.statuses[503])
	}
	return nil
}

// witness beats, and notes how it is answered.
type witness struct {
	url string

	mu       sync.Mutex
	statuses [600]int
	deferred []time.Duration // how long the answers took with which heartbeats were deferred
	since    time.Time       // Redis answers since
	again    map[string]time.Duration
	fault    error
}

// beat beats for a user until ctx ends.
func (w *witness) beat(ctx context.Context, user string) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		began := time.Now()
		status, err := postBeat(ctx, client, w.url, `{"user":"`+user+`"}`)
		if ctx.Err() != nil {
			return
		}
		w.note(user, status, err, began)
		select {
		case <-ctx.Done():
		case <-time.After(outagePause):
		}
	}
}

// postBeat sends a body and returns the status of the answer.
func postBeat(ctx context.Context, client *http.Client, url, body string) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

func (w *witness) note(user string, status int, err error, began time.Time) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		w.fault = err
	case status != http.StatusOK && status != http.StatusAccepted && status != http.StatusServiceUnavailable:
		w.fault = fmt.Errorf("a heartbeat was answered %d", status)
	default:
		w.statuses[status]++
	}
	if status == http.StatusAccepted && w.since.IsZero() {
		w.deferred = append(w.deferred, now.Sub(began))
	}
	if status == http.StatusOK && w.again[user] == 0 && !began.Before(w.since) {
		if w.again == nil {
			w.again = map[string]time.Duration{}
		}
		w.again[user] = now.Sub(w.since)
	}
}

// back says since when Redis answers.
func (w *witness) back(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since, w.again = at, nil
}

// served waits until each user's heartbeat was applied since.
func (w *witness) served(ctx context.Context, since time.Time) error {
	err := wait(ctx, servedWithin, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.fault != nil || len(w.again) == outageConnections
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil {
		err = fmt.Errorf("%d of %d are served %s after Redis answers: %w", len(w.again), outageConnections, time.Since(since), err)
	}
	return errors.Join(err, w.fault)
}

// longest is how long it took until all were served again.
func (w *witness) longest() (d time.Duration) {
	for _, took := range w.again {
		d = max(d, took)
	}
	return d
}
