package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
)

// waitPart waits until health says of a part what is wanted, and returns it.
func (s *served) waitPart(part, status string, parts ...string) {
	s.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		_, _, details := s.healthNow()
		missing := !strings.HasPrefix(details[part], status+": ")
		for _, p := range parts {
			missing = missing || !strings.Contains(details[part], p)
		}
		if !missing {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: %q is not %s with %q", part, details[part], status, parts)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// takingAll is a queue that takes every message.
type takingAll struct{}

func (takingAll) Send(context.Context, string, []queue.Message) error { return nil }

// TestHealthOfTheWorker: events that fail or are given up, and messages that are put aside, are told with what to do.
func TestHealthOfTheWorker(t *testing.T) {
	t.Parallel()
	s := serveApp(t, testkit.Start(t).URL(), nil)
	s.waitPart("worker", "ok")
	n := 0
	write := func(status eventlog.Status) {
		t.Helper()
		n++
		at := time.Now()
		e := presence.Event{ID: presence.EventID("ann", "s", presence.UserOnline, int64(n)), Type: presence.UserOnline, Subject: presence.Subject{User: "ann", Session: "s"}, Body: presence.Body{Epoch: int64(n), DetectedAt: at}}
		if err := s.logged.Write(t.Context(), []eventlog.Update{{Event: e, Steps: []eventlog.Step{{Status: status, At: at}}}}); err != nil {
			t.Fatal(err)
		}
	}
	write(eventlog.Failed)
	write(eventlog.Failed)
	s.waitPart("worker", "degraded", "no event succeeded in the last minute, and 2 failed")
	write(eventlog.Done)
	s.waitPart("worker", "ok", "2 events failed in the last minute and are delivered again")
	write(eventlog.Dead)
	s.waitPart("worker", "degraded", "1 events were given up in the last hour", "/replay")

	aside := queue.NewMeter(takingAll{})
	if err := aside.Send(t.Context(), queue.Heartbeats+queue.RejectedSuffix, make([]queue.Message, 3)); err != nil {
		t.Fatal(err)
	}
	other := serveApp(t, testkit.Start(t).URL(), nil)
	other.sent = aside
	other.waitPart("queue", "degraded", "3 messages were put aside in the last hour", "heartbeats-rejected", "property reason")
}

// TestHealthOfAListenerElsewhere: an app without the listener tells when none runs anywhere.
func TestHealthOfAListenerElsewhere(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	raw := server.Client()
	t.Cleanup(func() { _ = raw.Close() })
	s := serveApp(t, server.URL(), map[string]string{"AzureWebJobs_ExpirationListener_Disabled": "true"})
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "ann"})
	s.waitPart("listener", "ok", "runs in another app")
	index, err := raw.Keys(t.Context(), "*/due").Result()
	if err != nil || len(index) != 1 {
		t.Fatal(index, err)
	}
	if err := raw.ZAdd(t.Context(), index[0], redis.Z{Score: float64(time.Now().Add(-time.Hour).UnixMilli()), Member: "ann/default"}).Err(); err != nil {
		t.Fatal(err)
	}
	s.waitPart("listener", "degraded", "no listener runs anywhere", "overdue by 1h0m", "az functionapp start")
	server.Kill()
	s.waitPart("listener", "unknown", "Redis did not answer")
	s.waitPart("clock", "unknown", "Redis did not answer")
}

// TestHealthOfForeignWrites: deadlines that no record knows are put aside, and health says so.
func TestHealthOfForeignWrites(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	raw := server.Client()
	t.Cleanup(func() { _ = raw.Close() })
	s := serveApp(t, server.URL(), nil)
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "ann"})
	index, err := raw.Keys(t.Context(), "*/due").Result()
	if err != nil || len(index) != 1 {
		t.Fatal(index, err)
	}
	if err := raw.ZAdd(t.Context(), index[0], redis.Z{Score: 1, Member: "nobody/s"}).Err(); err != nil {
		t.Fatal(err)
	}
	s.waitPart("listener", "degraded", "1 deadlines of sessions that no record knows were put aside", "quarantine")
	s.waitFor("it is counted", map[string]float64{"listener_quarantined_total": 1})
}

// warning is a part that knows of something wrong.
type warning struct{ noRecords }

func (warning) Ping(context.Context) error { return nil }
func (warning) Warnings() []string {
	return []string{"this file is that of one instance: set COSMOS_ENDPOINT", "the folder is read-only"}
}

// TestHealthTakesWarningsOfTheParts, each once, beside what it finds itself.
func TestHealthTakesWarningsOfTheParts(t *testing.T) {
	t.Parallel()
	s := serveApp(t, testkit.Start(t).URL(), nil)
	s.records = warning{noRecords{errors.New("x")}}
	s.waitPart("eventLog", "degraded", "set COSMOS_ENDPOINT; the folder is read-only")
}

// TestRequestsAreMeasured by route, without ids, with what was answered.
func TestRequestsAreMeasured(t *testing.T) {
	t.Parallel()
	s := serveApp(t, testkit.Start(t).URL(), nil)
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "secret-ann"})
	s.must(400, "POST", "/api/heartbeat", map[string]any{"user": ""})
	s.must(200, "GET", "/api/users/secret-ann", nil)
	s.must(200, "GET", "/api/users/secret-bob", nil)
	s.must(404, "GET", "/secret-route", nil)
	for range 2 {
		status, _, _ := s.call("SECRET", "/api/heartbeat", nil)
		if status != http.StatusMethodNotAllowed {
			t.Fatal(status)
		}
	}
	got := s.waitFor("requests are counted", map[string]float64{
		`http_requests_total{method="POST",route="/api/heartbeat",status="200"}`:      1,
		`http_requests_total{method="POST",route="/api/heartbeat",status="400"}`:      1,
		`http_requests_total{method="GET",route="/api/users/{user}",status="200"}`:    2,
		`http_request_duration_seconds_count{method="GET",route="/api/users/{user}"}`: 2,
		`http_requests_total{method="GET",route="unknown",status="404"}`:              1,
	})
	others := 0.0
	for name, n := range got {
		if strings.Contains(strings.ToLower(name), "secret") {
			t.Errorf("%s has what a client chose", name)
		}
		if strings.Contains(name, "http_requests_total") && strings.Contains(name, `method="other"`) {
			others += n
		}
	}
	if others != 2 {
		t.Errorf("%v requests of other methods", others)
	}
}

// TestSessionsAndMemoryAreCounted over all partitions, by the process that has the listener.
func TestSessionsAndMemoryAreCounted(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	s := serveApp(t, server.URL(), nil)
	for i := range 20 {
		s.must(200, "POST", "/api/heartbeat", map[string]any{"user": fmt.Sprintf("u%d", i)})
	}
	s.must(204, "POST", "/api/leave", map[string]any{"user": "u0"})
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.census.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	got := s.waitFor("the sessions are counted", map[string]float64{"sessions_live": 19, "redis_memory_limit_bytes": 0})
	if got["userconnectivity_redis_memory_used_bytes"] < 100_000 {
		t.Errorf("memory: %v", got["userconnectivity_redis_memory_used_bytes"])
	}
}
