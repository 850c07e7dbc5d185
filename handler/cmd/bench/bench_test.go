package main

import (
	"bytes"
	"context"
	"errors"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisstore"
)

func TestReport(t *testing.T) {
	t.Parallel()
	var r report
	r.figure("A", "a figure", "%d", 7)
	r.atMost("B", "a bound that holds", 5*time.Millisecond, 5*time.Millisecond)
	r.atMost("B", "a bound that does not", 5*time.Millisecond+1, 5*time.Millisecond)
	r.ratio("C", "a ratio on its bar", 1, 2, 0.5, 0.6)
	r.ratio("C", "a ratio under its bar", 0.99, 2, 0.5, 0)
	r.ratioAtMost("C", "a ratio over its bar", 5, 1, 4)
	r.ratio("C", "nothing to nothing", 0, 0, 0.5, 0)
	r.ratioAtMost("C", "nothing to nothing, at most", 0, 0, 4)
	r.numberAtMost("D", "a number", math.NaN(), 10, " MB")
	bars, missed := r.missed()
	var names []string
	for _, m := range missed {
		names = append(names, m.name)
	}
	want := "a bound that does not|a ratio under its bar|a ratio over its bar|nothing to nothing|nothing to nothing, at most|a number"
	if got := strings.Join(names, "|"); bars != 8 || got != want {
		t.Errorf("%d bars, missed %s, want 8 and %s", bars, got, want)
	}
	var out bytes.Buffer
	if err := r.print(&out); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	if first, last := strings.Index(text, "a ratio on its bar"), strings.Index(text, "a figure"); first < 0 || last < first {
		t.Errorf("ratios do not come first:\n%s", text)
	}
	if !strings.Contains(text, "6 of 8 bars are NOT met") {
		t.Errorf("what is not met is not said at the end:\n%s", text)
	}
}

func TestReportAllMet(t *testing.T) {
	t.Parallel()
	var r report
	r.ratio("A", "a ratio", 1, 1, 0.5, 0)
	var out bytes.Buffer
	if err := r.print(&out); err != nil || !strings.Contains(out.String(), "All 1 bars are met.") || strings.Contains(out.String(), "NOT") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestAnswerLength(t *testing.T) {
	t.Parallel()
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\nDate: now\r\n\r\n"
	for name, c := range map[string]struct {
		in    string
		want  int
		fails bool
	}{
		"whole":       {in: head + "123456789012", want: len(head) + 12},
		"body begun":  {in: head + "1", want: len(head) + 12},
		"head begun":  {in: head[:30], want: -1},
		"length last": {in: "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n", want: 41},
		"other":       {in: "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n", fails: true},
		"chunked":     {in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", fails: true},
		"in the body": {in: "HTTP/1.1 200 OK\r\n\r\n\r\nContent-Length: 3\r\n", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := answerLength([]byte(c.in))
			if (err != nil) != c.fails || err == nil && got != c.want {
				t.Errorf("%d, %v, want %d", got, err, c.want)
			}
		})
	}
}

func TestReadAnswerInPieces(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer ours.Close()
	go func() {
		for _, piece := range []string{"HTTP/1.1 200 OK\r\nContent-Le", "ngth: 4\r\n\r", "\nab", "cd"} {
			_, _ = theirs.Write([]byte(piece))
		}
		_, _ = theirs.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc"))
		_ = theirs.Close()
	}()
	buf := make([]byte, 100)
	if err := readAnswer(ours, buf); err != nil {
		t.Error(err)
	}
	if err := readAnswer(ours, buf); err == nil {
		t.Error("an answer longer than it says was taken")
	}
	if err := readAnswer(ours, buf); err == nil {
		t.Error("a closed connection was taken for an answer")
	}
}

// TestLoad runs the generator against a server that reads requests the usual way.
func TestLoad(t *testing.T) {
	t.Parallel()
	const people, conns = 10, 4
	seen := make(chan string, 1<<20)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body bytes.Buffer
		_, _ = body.ReadFrom(r.Body)
		seen <- r.Method + r.URL.Path + body.String()
		_, _ = w.Write([]byte("{}"))
	}))
	defer server.Close()
	l := load{server.Listener.Addr().String(), conns, singleBeats(people, conns)}
	total := 0
	got := map[string]bool{}
	for deadline := time.Now().Add(30 * time.Second); len(got) < people && time.Now().Before(deadline); {
		o, err := l.run(t.Context(), 20*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		total += int(o.count)
		for range o.count {
			got[<-seen] = true
		}
		if o.rate() <= 0 || o.times.TotalCount() != o.count {
			t.Errorf("rate %f, %d times of %d", o.rate(), o.times.TotalCount(), o.count)
		}
	}
	for i := range people {
		if want := `POST/api/heartbeat{"user":"` + userID(i) + `"}`; !got[want] {
			t.Errorf("%s was not sent", want)
		}
	}
	if len(got) != people || len(seen) != 0 {
		t.Errorf("%d different requests and %d too many after %d", len(got), len(seen), total)
	}
}

func TestLoadFails(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	l := load{server.Listener.Addr().String(), 2, singleBeats(10, 2)}
	if _, err := l.run(t.Context(), time.Minute); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("%v, want the answer in it", err)
	}
	server.Close()
	if _, err := l.run(t.Context(), time.Minute); err == nil {
		t.Error("no error without a server")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := loop(1, time.Minute, func(int) func() error { return ctx.Err }); !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want it canceled", err)
	}
}

func TestUserIDs(t *testing.T) {
	t.Parallel()
	if id := userID(42); len(id) != userLength || len(userPrefix+placeholder) != userLength || userLength != 36 {
		t.Errorf("%q has %d characters", id, len(id))
	}
	b := []byte(userID(987654321))
	setUser(b, 1203)
	if string(b) != userID(1203) {
		t.Errorf("%s, want %s", b, userID(1203))
	}
}

func TestBulkBeats(t *testing.T) {
	t.Parallel()
	next := bulkBeats(6, 3)(0)
	a, b, c := string(next()), string(next()), string(next())
	if a == b || a != c {
		t.Errorf("the bulks do not take turns:\n%s\n%s\n%s", a, b, c)
	}
	for i := range 6 {
		if strings.Count(a+b, userID(i)) != 1 {
			t.Errorf("user %d is in the bulks %d times", i, strings.Count(a+b, userID(i)))
		}
	}
}

func TestBenchmarkRate(t *testing.T) {
	t.Parallel()
	const header = `"test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"` + "\n"
	got, err := benchmarkRate(header + `"EVALSHA ab "1" k,"2" ","250000.00","0.029","0.016","0.031","0.039","0.063","0.063"` + "\n")
	if err != nil || got != 250000 {
		t.Errorf("%f, %v", got, err)
	}
	for _, bad := range []string{"", header, "ERR no such script", header + `"a","x","1","2","3","4","5","6"`, header + `"a","0.00","1","2","3","4","5","6"`} {
		if got, err := benchmarkRate(bad); err == nil {
			t.Errorf("%q was read as %f", bad, got)
		}
	}
}

func TestCommandCalls(t *testing.T) {
	t.Parallel()
	if n, err := commandCalls("calls=21,usec=175,usec_per_call=8.33"); err != nil || n != 21 {
		t.Errorf("%f, %v", n, err)
	}
	if _, err := commandCalls(""); err == nil {
		t.Error("nothing was read as calls")
	}
}

func TestMachine(t *testing.T) {
	t.Parallel()
	if got := redisVersion("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc"); got != "Redis 7.0.15" {
		t.Error(got)
	}
	for _, text := range []string{" 03:09 up 1:37,  0 user,  load average: 1.47, 9.17, 10.03", "up, 2 users, load averages: 1.47 9.17 10.03"} {
		if got := loadAverage(text); !strings.HasPrefix(got, "1.47") {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func TestStatTime(t *testing.T) {
	t.Parallel()
	got, ok := statTime("4242 (a b) S 1 4242 4242 0 -1 4194560 900 0 0 0 150 25 0 0 20 0 8 0 3000 0 0")
	if !ok || got != 1750*time.Millisecond {
		t.Errorf("%s, %v", got, ok)
	}
	for _, bad := range []string{"", "1 (a) S 1", "1 (a) S 1 1 1 0 -1 1 1 0 0 0 x 25 0"} {
		if _, ok := statTime(bad); ok {
			t.Errorf("%q was read", bad)
		}
	}
}

func TestNumbers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		of   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2}} {
		if got := median(c.of); got != c.want {
			t.Errorf("median of %v is %f", c.of, got)
		}
	}
	if got := percentile([]time.Duration{1, 2, 3, 4}, 50); got != 2 {
		t.Errorf("p50 is %d", got)
	}
	if got := percentile([]time.Duration{1, 2, 3, 4}, 99); got != 4 {
		t.Errorf("p99 is %d", got)
	}
	for n, want := range map[float64]string{12: "12", 46_900: "46.9 k", 1_250_000: "1.25 M"} {
		if got := thousands(n); got != want {
			t.Errorf("%f is %q", n, got)
		}
	}
}

func TestOptions(t *testing.T) {
	t.Parallel()
	for only, want := range map[string]int{"": 8, "A": 1, "a, d": 2, "X": 0, "A,": 0} {
		some, err := chosen(only)
		if (err != nil) != (want == 0) || len(some) != want {
			t.Errorf("-only %q: %d sections, %v", only, len(some), err)
		}
	}
	p, err := options{sessions: 5000, quick: true, starts: 2}.plan()
	if err != nil || p.sessions != 5000 || p.starts != 2 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := (options{sessions: 1, starts: 1}).plan(); err == nil {
		t.Error("one session was taken")
	}
}

// TestScriptCalls applies beats with the calls that other clients make, and looks at them through the store.
func TestScriptCalls(t *testing.T) {
	t.Parallel()
	redis, err := startRedis(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer redis.stop()
	s := newStore(redis, usual)
	defer s.close()
	// The calls of other clients are dated when they are run, so the store's beats must be of now, too.
	beat := beatsOf(0, 1, &defaultTTL)
	later := func() []presence.Beat {
		beat[0].At = time.Now()
		return beat
	}

	naive, err := newNaiveStore(t.Context(), redis.url())
	if err != nil {
		t.Fatal(err)
	}
	defer naive.client.Close()
	for _, want := range []presence.Change{presence.ChangeOnline, presence.ChangeRenewed} {
		outcomes, err := naive.Heartbeats(t.Context(), later())
		if err != nil || outcomes[0].Change != want {
			t.Fatalf("%+v, %v, want %s", outcomes, err, want)
		}
	}
	if outcomes, err := s.Heartbeats(t.Context(), later()); err != nil || outcomes[0].Change != presence.ChangeRenewed {
		t.Errorf("the store does not know the session: %+v, %v", outcomes, err)
	}

	call := s.RenewCall(later())
	answer, err := redis.admin.Eval(t.Context(), call.Text, call.Keys, call.Args...).Text()
	if lines := strings.Split(answer, "\n"); err != nil || len(lines) != 3 || lines[2] == "" {
		t.Errorf("the renewal was answered %q, %v", answer, err)
	}
	one := later()[0]
	if ttl, err := redis.admin.PTTL(t.Context(), s.LeaseKey(one.User, one.Session)).Result(); err != nil || ttl <= 0 {
		t.Errorf("the lease has %s, %v", ttl, err)
	}
	keys, err := outboxes()
	if err != nil || len(keys) != partitions {
		t.Fatalf("%d outboxes, %v", len(keys), err)
	}
	if n, err := redis.admin.Exists(t.Context(), keys...).Result(); err != nil || n != 1 {
		t.Errorf("%d outboxes have events, %v, want that of one user", n, err)
	}
}

// TestBenchmark runs redis-benchmark with renewals: each must renew a session that lives.
func TestBenchmark(t *testing.T) {
	t.Parallel()
	redis, err := startRedis(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer redis.stop()
	b, err := newBenchmark(t.Context(), redis)
	if err != nil {
		t.Fatal(err)
	}
	lease := b.layouts[1].LeaseKey(userID(b.users-1), presence.DefaultSession)
	// The lease would hold an hour; only a beat with the usual ttl shortens it.
	if ttl, err := redis.admin.PTTL(t.Context(), lease).Result(); err != nil || ttl <= defaultTTL {
		t.Fatalf("the lease has %s, %v", ttl, err)
	}
	for {
		rate, err := b.beats(t.Context(), shape{perCall: 2.5, sections: 2, depth: 4}, 20*time.Millisecond)
		if err != nil || rate <= 0 {
			t.Fatalf("%f beats/s, %v", rate, err)
		}
		ttl, err := redis.admin.PTTL(t.Context(), lease).Result()
		if err != nil {
			t.Fatal(err)
		}
		if ttl <= defaultTTL {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("no beat of redis-benchmark reached the last user")
		}
	}
}

// TestDue has a session expire at the instant that was asked for.
func TestDue(t *testing.T) {
	t.Parallel()
	redis, err := startRedis(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer redis.stop()
	s := newStore(redis, redisstore.Config{Partitions: 1, LeaseKeys: true})
	defer s.close()
	at := time.Now().Add(10 * time.Second)
	ttl := lateTTL
	outcomes, err := s.Heartbeats(t.Context(), []presence.Beat{due(1, at, &ttl)})
	if err != nil {
		t.Fatal(err)
	}
	if off := outcomes[0].ExpiresAt.Sub(at).Abs(); off > 5*time.Second {
		t.Errorf("the deadline is %s away from what was asked", off)
	}
}

func TestBareDrain(t *testing.T) {
	t.Parallel()
	took, err := bareDrain(t.Context(), 5*drainBatch+1)
	if err != nil || took <= 0 {
		t.Errorf("%s, %v", took, err)
	}
}

// TestWitness: only heartbeats that began after Redis was back tell how soon it served again.
func TestWitness(t *testing.T) {
	t.Parallel()
	w := &witness{}
	began := time.Now()
	w.note("a", 202, nil, began)
	w.back(time.Now())
	w.note("a", 200, nil, began)
	w.note("b", 202, nil, time.Now())
	if len(w.again) != 0 || len(w.deferred) != 1 || w.fault != nil {
		t.Fatalf("%+v", w)
	}
	w.note("a", 200, nil, time.Now())
	first := w.again["a"]
	w.note("a", 200, nil, time.Now())
	if first <= 0 || w.again["a"] != first || w.longest() != first {
		t.Errorf("%+v", w.again)
	}
	if w.note("a", 500, nil, began); w.fault == nil {
		t.Error("500 is no fault")
	}
}
