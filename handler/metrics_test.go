package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/maintenance"
	"userconnectivity/handler/metrics"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
)

// served is a whole app behind its routes.
type served struct {
	*app
	t      *testing.T
	server *httptest.Server
}

// serveApp runs every part of an app on a Redis until the test ends.
func serveApp(t *testing.T, url string, settings map[string]string) *served {
	t.Helper()
	s := &served{app: runApp(t, url, slog.New(slog.DiscardHandler), settings), t: t}
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.deferred.Run(ctx) })
	if s.cfg.Listener {
		running.Go(func() { s.listener.Run(ctx) })
	}
	s.server = httptest.NewServer(s.router)
	// A client that waits no longer than a request may take.
	s.server.Client().Timeout = 10 * time.Second
	t.Cleanup(func() {
		s.server.Close()
		stop()
		running.Wait()
	})
	return s
}

// call makes a request; body may be nil.
func (s *served) call(method, path string, body any) (status int, header http.Header, text []byte) {
	s.t.Helper()
	encoded, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.server.URL+path, bytes.NewReader(encoded))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := s.server.Client().Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	if text, err = io.ReadAll(response.Body); err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, response.Header, text
}

// must makes a request that is answered with the status.
func (s *served) must(status int, method, path string, body any) []byte {
	s.t.Helper()
	got, _, text := s.call(method, path, body)
	if got != status {
		s.t.Fatalf("%s %s: %d %s, want %d", method, path, got, text, status)
	}
	return text
}

// scrape reads the metrics as a monitor does: values by name and labels.
func (s *served) scrape() map[string]float64 {
	s.t.Helper()
	status, header, text := s.call("GET", "/api/metrics", nil)
	if status != 200 || header.Get("Content-Type") != "text/plain; version=0.0.4; charset=utf-8" || header.Get("Content-Length") != strconv.Itoa(len(text)) {
		s.t.Fatalf("%d %v", status, header)
	}
	values, err := parseExposition(string(text))
	if err != nil {
		s.t.Fatalf("%v in\n%s", err, text)
	}
	return values
}

// waitFor scrapes until the values are the wanted ones.
func (s *served) waitFor(what string, want map[string]float64) map[string]float64 {
	s.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		got := s.scrape()
		missing := ""
		for name, value := range want {
			if v, ok := got["userconnectivity_"+name]; !ok || v != value {
				missing = fmt.Sprintf("%s is %v, want %v", name, v, value)
			}
		}
		if missing == "" {
			return got
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("still waiting until %s: %s", what, missing)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// parseExposition reads the text format of Prometheus: values by name and labels, of a histogram its count and sum. It
// is stricter than monitors: what Prometheus's own linter complains of is an error, too.
func parseExposition(text string) (map[string]float64, error) {
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		return nil, err
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, metrics.Prefix) { // those of the Go runtime are as they are
			return nil, fmt.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	for name, family := range families {
		if !strings.HasPrefix(name, metrics.Prefix) && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			return nil, fmt.Errorf("%s has another prefix", name)
		}
		for _, m := range family.Metric {
			labels := ""
			for _, l := range m.Label {
				labels += fmt.Sprintf(",%s=%q", l.GetName(), l.GetValue())
			}
			if labels != "" {
				labels = "{" + labels[1:] + "}"
			}
			switch {
			case m.Histogram != nil:
				values[name+"_count"+labels], values[name+"_sum"+labels] = float64(m.Histogram.GetSampleCount()), m.Histogram.GetSampleSum()
			case m.Counter != nil:
				values[name+labels] = m.Counter.GetValue()
			case m.Gauge != nil:
				values[name+labels] = m.Gauge.GetValue()
			}
		}
	}
	return values, nil
}

const maintenanceChannel = "AzureRedisEvents"

// TestMetrics follows the numbers through beats, an announced maintenance with what is deferred in it, and its end.
func TestMetrics(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	raw := server.Client()
	t.Cleanup(func() { _ = raw.Close() })
	s := serveApp(t, server.URL(), map[string]string{"MAX_INSTANCES": "7", "REDIS_MAX_CLIENTS": "200", "WEBSITE_SITE_NAME": "app"})
	publish := func(text string) {
		t.Helper()
		if err := raw.Publish(t.Context(), maintenanceChannel, text).Err(); err != nil {
			t.Fatal(err)
		}
	}
	testkit.Eventually(t, "it sweeps", func(context.Context, *redis.Client) (bool, error) { return s.listener.State().Sweeps > 0, nil }, server)
	before := s.waitFor("the listener runs with its two connections", map[string]float64{
		"listener_running": 1, "listener_notifications_on": 1, "redis_connections": 2, "redis_breaker_open": 0, "redis_breaker_openings_total": 0,
		"redis_failures_in_a_row": 0, "redis_budget_used_connections": 14, "redis_budget_limit_connections": 200,
		`redis_maintenance_messages_total{type="NodeMaintenanceScheduled"}`: 0, `redis_maintenance_messages_total{type="Unknown"}`: 0,
		`heartbeats_total{change="online",source="http"}`: 0, `heartbeats_total{change="online",source="queue"}`: 0, "leaves_failed_total": 0,
		fmt.Sprintf(`build_info{goversion=%q,version=%q}`, runtime.Version(), version): 1,
	})
	if age, ok := before["userconnectivity_redis_maintenance_last_message_age_seconds"]; ok {
		t.Errorf("the age of no message is %v", age)
	}
	for _, name := range []string{"go_goroutines", "go_memstats_heap_alloc_bytes"} {
		if before[name] == 0 {
			t.Errorf("%s is 0", name)
		}
	}
	testkit.Eventually(t, "it sweeps", func(context.Context, *redis.Client) (bool, error) {
		return s.scrape()["userconnectivity_listener_sweeps_total"] > 0, nil
	}, server)

	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "secret-ann"})
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "secret-ann"})
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "secret-ann", "session": "secret-laptop", "seq": 5})
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "secret-ann", "session": "secret-laptop", "seq": 5})
	s.must(400, "POST", "/api/heartbeat", map[string]any{"user": ""})
	s.must(200, "POST", "/api/heartbeats", map[string]any{"heartbeats": []any{map[string]any{"user": "secret-bob"}, map[string]any{"user": "b b"}, map[string]any{"user": "secret-ann"}}})
	s.must(204, "POST", "/api/leave", map[string]any{"user": "secret-bob"})
	s.must(204, "POST", "/api/leaves", map[string]any{"leaves": []any{map[string]any{"user": "secret-bob"}, map[string]any{"user": "secret-nobody"}}})
	if _, err := s.trackers[metrics.OverQueue].Heartbeat(t.Context(), presence.Beat{User: "secret-cid", Session: "s", At: time.Now()}); err != nil {
		t.Fatal(err)
	}
	publish("NotificationType|NodeMaintenanceScheduled|StartTimeInUTC|2099-01-01T00:00:00|IsReplica|False|IPAddress||SSLPort|15001|NonSSLPort|13001")
	publish("NotificationType|secret-type|IsReplica|False")
	// Nothing takes events here: what was started waits.
	during := s.waitFor("the beats and messages are counted", map[string]float64{
		`heartbeats_total{change="online",source="http"}`: 2, `heartbeats_total{change="started",source="http"}`: 1, `heartbeats_total{change="renewed",source="http"}`: 2,
		`heartbeats_total{change="stale",source="http"}`: 1, `heartbeats_total{change="deferred",source="http"}`: 0, `heartbeats_total{change="full",source="http"}`: 0,
		`heartbeats_total{change="online",source="queue"}`: 1, `heartbeats_failed_total{source="http"}`: 0, `heartbeats_failed_total{source="queue"}`: 0,
		`leaves_total{change="left"}`: 1, "leaves_failed_total": 0,
		`redis_maintenance_messages_total{type="NodeMaintenanceScheduled"}`: 1, `redis_maintenance_messages_total{type="Unknown"}`: 1,
		"redis_breaker_open": 0, "listener_outbox_events": 5, "listener_relayed_total": 0, "listener_claimed_total": 0, "deferral_waiting_items": 0,
	})
	if age := during["userconnectivity_redis_maintenance_last_message_age_seconds"]; age > 60 {
		t.Errorf("the last message came %v s ago", age)
	}

	publish("NotificationType|NodeMaintenanceStart|IsReplica|False|IPAddress||SSLPort|15001|NonSSLPort|13001")
	s.waitFor("the breaker is open", map[string]float64{"redis_breaker_open": 1, "redis_breaker_openings_total": 1})
	s.must(202, "POST", "/api/heartbeat", map[string]any{"user": "secret-ann"})
	s.must(202, "POST", "/api/heartbeat", map[string]any{"user": "secret-ann"})
	s.must(202, "POST", "/api/leave", map[string]any{"user": "secret-ann", "session": "secret-laptop"})
	s.waitFor("they wait", map[string]float64{
		`heartbeats_total{change="deferred",source="http"}`: 2, `leaves_total{change="deferred"}`: 1, "deferral_waiting_items": 2,
		"deferral_deferred_total": 3, "deferral_superseded_total": 1, "deferral_written_total": 0, "deferral_expired_total": 0, "deferral_refused_total": 0,
	})
	publish("NotificationType|NodeMaintenanceEnded|IsReplica|False|IPAddress||SSLPort|15001|NonSSLPort|13001")
	s.waitFor("they are written", map[string]float64{
		"redis_breaker_open": 0, "redis_breaker_openings_total": 1, "deferral_waiting_items": 0, "deferral_waiting_bytes": 0, "deferral_oldest_age_seconds": 0,
		"deferral_deferred_total": 3, "deferral_written_total": 2, "listener_outbox_events": 6,
	})
	if _, _, text := s.call("GET", "/api/metrics", nil); bytes.Contains(text, []byte("secret")) || bytes.Contains(text, []byte(server.Addr)) {
		t.Errorf("what clients and Redis name is shown:\n%s", text)
	}
}

// TestMetricsInTheDocument: docs/metrics.md lists every metric with its kind, and no other.
func TestMetricsInTheDocument(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([a-z]+) \\| ([^|]*) ?\\| .+ \\|$").FindAllStringSubmatch(string(text), -1) {
		if listed[row[1]] != "" {
			t.Errorf("%s is listed twice", row[1])
		}
		listed[row[1]] = row[2] + " " + strings.Join(strings.Fields(strings.NewReplacer("`", "", ",", "", "on a cluster", "").Replace(row[3])), " ")
	}
	s := serveApp(t, testkit.Start(t).URL(), map[string]string{"REDIS_MAX_CLIENTS": "200", "OTEL_TRACES_EXPORTER": "console"})
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "ann"})
	s.sent = queue.NewMeter(takingAll{})
	s.metrics = sync.OnceValue(func() *metrics.Registry { return metrics.NewRegistry(s.collectors()...) })
	if err := s.sent.Send(t.Context(), "events", nil); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	e := presence.Event{ID: presence.EventID("ann", "s", presence.UserOnline, 1), Type: presence.UserOnline, Subject: presence.Subject{User: "ann", Session: "s"}, Body: presence.Body{Epoch: 1, DetectedAt: at}}
	if err := s.logged.Write(t.Context(), []eventlog.Update{{Event: e, Steps: []eventlog.Step{{Status: eventlog.Processing, At: at}, {Status: eventlog.Done, At: at}}}}); err != nil {
		t.Fatal(err)
	}
	s.breaker.Notify(maintenance.Parse("NotificationType|NodeMaintenanceScheduled|StartTimeInUTC|2099-01-01T00:00:00", time.Now()))
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { s.census.Run(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	s.waitFor("all is told", map[string]float64{"redis_memory_limit_bytes": 0, "listener_running": 1})
	_, _, told := s.call("GET", "/api/metrics", nil)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(told))
	if err != nil {
		t.Fatal(err)
	}
	for name, family := range families {
		name, ours := strings.CutPrefix(name, metrics.Prefix)
		if !ours {
			continue
		}
		kind, labels := strings.ToLower(family.GetType().String()), map[string]bool{}
		for _, l := range family.Metric[0].Label {
			labels[l.GetName()] = true
		}
		for label := range strings.FieldsSeq(strings.TrimPrefix(listed[name], kind)) {
			if !labels[label] && label != "node" {
				t.Errorf("docs/metrics.md says that %s has the label %s", name, label)
			}
			delete(labels, label)
		}
		if !strings.HasPrefix(listed[name], kind+" ") || len(labels) > 0 {
			t.Errorf("%s is a %s with other labels %v, and docs/metrics.md says %q", name, kind, labels, listed[name])
		}
		delete(listed, name)
	}
	// These are told only after something failed.
	for _, name := range []string{"queue_sends_failed_total", "eventlog_calls_failed_total"} {
		delete(listed, name)
	}
	if len(listed) > 0 {
		t.Errorf("docs/metrics.md lists what is not told: %v", listed)
	}
}

// TestMetricsWithoutAListener has none of its numbers.
func TestMetricsWithoutAListener(t *testing.T) {
	t.Parallel()
	s := serveApp(t, testkit.Start(t).URL(), map[string]string{"AzureWebJobs_ExpirationListener_Disabled": "true"})
	for name := range s.scrape() {
		if strings.Contains(name, "listener") {
			t.Errorf("%s is told", name)
		}
	}
}

// TestMetricsOfACluster tell the breakers by node.
func TestMetricsOfACluster(t *testing.T) {
	t.Parallel()
	c := testkit.StartCluster(t, 3, 0)
	s := serveApp(t, c.Primaries[0].URL(), nil)
	want := map[string]float64{"redis_breaker_openings_total": 0}
	for _, primary := range c.Primaries {
		want[fmt.Sprintf("redis_breaker_open{node=%q}", primary.Addr)], want[fmt.Sprintf("redis_failures_in_a_row{node=%q}", primary.Addr)] = 0, 0
	}
	got := s.waitFor("all primaries are known", want)
	if _, alone := got["userconnectivity_redis_breaker_open"]; alone {
		t.Error("there is one without a node, too")
	}
	_, port, _ := net.SplitHostPort(c.Primaries[1].Addr)
	s.breaker.Notify(maintenance.Parse("NotificationType|NodeMaintenanceStart|NonSSLPort|"+port, time.Now()))
	want["redis_breaker_openings_total"], want[fmt.Sprintf("redis_breaker_open{node=%q}", c.Primaries[1].Addr)] = 1, 1
	s.waitFor("one is open", want)
}

// TestMetricsWhileRedisHangs: the numbers tell of it, and wait for nothing.
func TestMetricsWhileRedisHangs(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	s := serveApp(t, server.URL(), nil)
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "ann"})
	server.Pause()
	t.Cleanup(server.Resume)
	var beats sync.WaitGroup
	for i := range 20 { // they are answered when they are given up, or once the breaker is open
		beats.Go(func() {
			r := httptest.NewRequestWithContext(t.Context(), "POST", "/api/heartbeat", strings.NewReader(fmt.Sprintf(`{"user":"ann-%d"}`, i)))
			r.Header.Set("Content-Type", "application/json")
			s.router.ServeHTTP(httptest.NewRecorder(), r)
		})
	}
	s.waitFor("the breaker is open", map[string]float64{"redis_breaker_open": 1, "redis_breaker_openings_total": 1})
	beats.Wait()
	s.must(202, "POST", "/api/heartbeat", map[string]any{"user": "bob"})
	s.must(202, "DELETE", "/api/users/bob/sessions/laptop", nil)
	if got := s.scrape(); got["userconnectivity_deferral_waiting_items"] < 2 || got["userconnectivity_deferral_refused_total"] != 0 {
		t.Errorf("%v", got)
	}
	server.Resume()
	s.waitFor("all is written", map[string]float64{"redis_breaker_open": 0, "redis_failures_in_a_row": 0, "deferral_waiting_items": 0, "deferral_expired_total": 0})
}

// TestMetricsAskNobody: not even a connection is made for them.
func TestMetricsAskNobody(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan struct{}, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
			select {
			case asked <- struct{}{}:
			default:
			}
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	s := serveApp(t, "redis://"+l.Addr().String(), map[string]string{
		"AzureWebJobs_ExpirationListener_Disabled": "true", "REDIS_MAINTENANCE_EVENTS": "off", "REDIS_MAX_CLIENTS": "0",
		"LOCAL_QUEUE_URL": "http://" + l.Addr().String(), "COSMOS_ENDPOINT": "http://" + l.Addr().String(), "COSMOS_KEY": "a2V5",
	})
	for range 20 {
		got := s.scrape()
		if _, known := got["userconnectivity_redis_budget_limit_connections"]; known || got["userconnectivity_redis_connections"] != 0 {
			t.Fatalf("%v", got)
		}
	}
	select {
	case <-asked:
		t.Error("somebody was asked")
	default:
	}
	s.call("POST", "/api/heartbeat", map[string]any{"user": "ann"}) // which does ask
	<-asked
}

// TestLeavesWhileRedisIsAway: leaves are answered 202 as beats are, and end their sessions once Redis is back.
func TestLeavesWhileRedisIsAway(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	s := serveApp(t, server.URL(), nil)
	contract := openContract(t, s)
	for _, user := range []string{"ann", "bob", "cid"} {
		s.must(200, "POST", "/api/heartbeat", map[string]any{"user": user})
	}
	s.breaker.Notify(maintenance.Parse("NotificationType|NodeMaintenanceStart", time.Now()))
	s.waitFor("the breaker is open", map[string]float64{"redis_breaker_open": 1})
	var receipt struct{ User, Session, Change string }
	for _, text := range [][]byte{
		s.must(202, "POST", "/api/leave", map[string]any{"user": "ann"}),
		s.must(202, "DELETE", "/api/users/bob/sessions/default", nil),
	} {
		contract.hold("LeaveReceipt", text)
		if err := json.Unmarshal(text, &receipt); err != nil || receipt.Change != "deferred" || receipt.Session != "default" {
			t.Errorf("%s: %v", text, err)
		}
	}
	var bulk struct {
		Deferred int
		Rejected []struct{ Index int }
	}
	text := s.must(200, "POST", "/api/leaves", map[string]any{"leaves": []any{map[string]any{"user": "cid"}, map[string]any{"user": "c d"}}})
	if err := json.Unmarshal(text, &bulk); err != nil || bulk.Deferred != 1 || len(bulk.Rejected) != 1 || bulk.Rejected[0].Index != 1 {
		t.Errorf("%s: %v", text, err)
	}
	s.breaker.Notify(maintenance.Parse("NotificationType|NodeMaintenanceEnded", time.Now()))
	s.waitFor("all leaves are written", map[string]float64{"redis_breaker_open": 0, "deferral_waiting_items": 0, "deferral_written_total": 3})
	var left struct {
		Users []struct {
			Status string
			Stale  bool
		}
	}
	text = s.must(200, "POST", "/api/users/query", map[string]any{"users": []string{"ann", "bob", "cid"}})
	if err := json.Unmarshal(text, &left); err != nil || len(left.Users) != 3 {
		t.Fatalf("%s: %v", text, err)
	}
	for _, u := range left.Users {
		if u.Status != "offline" || u.Stale {
			t.Errorf("after they left: %s", text)
		}
	}
	s.must(204, "POST", "/api/leaves", map[string]any{"leaves": []any{map[string]any{"user": "cid"}}})
}
