package loadtest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// small is a load that a test can wait for.
func small() Options {
	return Options{Users: 200, Invocations: 500, Workers: 16, MaxClients: 50, Host: hostBinary, Package: packageDir}
}

// counts returns how many samples each function has.
func counts(r *Result) map[Function]int {
	n := map[Function]int{}
	for _, s := range r.Samples {
		n[s.Function]++
	}
	return n
}

func TestRunStartsTheAppAndMeasuresIt(t *testing.T) {
	t.Parallel()
	for name, processes := range map[string]int{"behind the host": 0, "three processes": 3} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := small()
			o.Processes = processes
			report, err := Run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			if problems := report.Problems(); len(problems) > 0 {
				t.Errorf("problems: %q", problems)
			}
			if len(report.Runs) != 1 {
				t.Fatalf("%d runs, want this app alone", len(report.Runs))
			}
			r := report.Runs[0]
			want := map[Function]int{Heartbeat: 250, User: 250, HeartbeatMessages: 100}
			if diff := cmp.Diff(want, counts(r)); diff != "" {
				t.Error(diff)
			}
			// The host's handler has at least one connection, and so has the watch.
			if most := r.MostClients(); most < 2+max(processes-1, 0) || most > o.MaxClients {
				t.Errorf("at most %d clients, with %d processes and a limit of %d", most, processes, o.MaxClients)
			}
			if r.MaxClients != o.MaxClients {
				t.Errorf("the limit of Redis is %d, want %d", r.MaxClients, o.MaxClients)
			}
		})
	}
}

func TestRunMeasuresARunningApp(t *testing.T) {
	t.Parallel()
	o := small()
	dir := t.TempDir()
	redisURL, server, err := startRedis(t.Context(), dir, o.MaxClients)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.stop)
	app, err := startApp(t.Context(), o, dir, redisURL)
	t.Cleanup(app.stop)
	if err != nil {
		t.Fatal(err)
	}
	o.URL, o.QueueURL, o.RedisURL = app.status.URL, app.status.QueueURL, redisURL
	for range 2 { // the ids of the second run's messages must be new
		report, err := Run(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if problems := report.Problems(); len(problems) > 0 || len(report.Runs[0].Samples) != 600 || len(report.Runs[0].Clients) == 0 {
			t.Errorf("%d samples, %d counts of clients, problems: %q", len(report.Runs[0].Samples), len(report.Runs[0].Clients), problems)
		}
	}
	// All users have beaten, and are known: what was sent was applied.
	client, err := oneConnection(redisURL)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	keys, err := client.Keys(t.Context(), "*load-*").Result()
	users := map[string]bool{}
	for _, key := range keys {
		if _, rest, ok := strings.Cut(key, "load-"); ok {
			number, _, _ := strings.Cut(rest, ":")
			users[number] = true
		}
	}
	if err != nil || len(users) < o.Users {
		t.Errorf("%d users have keys in Redis, want %d (%v)", len(users), o.Users, err)
	}
}

func TestRunTellsWhatFails(t *testing.T) {
	t.Parallel()
	key := make(chan string, 1000)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key <- r.Header.Get("x-functions-key")
		if r.Method == http.MethodGet {
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`{"detail":"the store is gone"}`))
		}
	}))
	defer server.Close()
	report, err := Run(t.Context(), Options{Users: 10, Invocations: 95, Workers: 4, URL: server.URL, Key: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"50 of 100 invocations failed: 503 Service Unavailable: the store is gone"}
	if diff := cmp.Diff(want, report.Problems()); diff != "" {
		t.Error(diff)
	}
	if got := <-key; got != "secret" {
		t.Errorf("the function key was %q", got)
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { cancel() }))
	defer server.Close()
	_, err := Run(ctx, Options{Users: 10, Invocations: 1_000_000, Rate: 100, Workers: 2, URL: server.URL})
	if err == nil || ctx.Err() == nil {
		t.Errorf("the error is %v", err)
	}
}

func TestRunKeepsThePace(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	o := Options{Users: 10, Invocations: 40, Rate: 100, Workers: 2, URL: server.URL}
	report, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	// No invocation may come before its time; how late they are is the machine's affair.
	if took := report.Runs[0].Took; took < 390*time.Millisecond {
		t.Errorf("40 invocations at 100 a second took %s", took)
	}
}

func TestNaiveDesigns(t *testing.T) {
	t.Parallel()
	o := Options{Users: 20, Invocations: 50, Workers: 8, MaxClients: 20}

	leaking, err := runNaive(t.Context(), o, false)
	if err != nil {
		t.Fatal(err)
	}
	// The watch has one of the connections, so 19 invocations get one, for ever.
	if s := leaking.Of(); s.Invocations != 60 || s.Errors != 41 || leaking.MostClients() != 20 || leaking.Opened != 19 || leaking.Refused == 0 {
		t.Errorf("client per invocation: %+v, %d clients, %d opened, %d refused", s, leaking.MostClients(), leaking.Opened, leaking.Refused)
	}

	quitting, err := runNaive(t.Context(), o, true)
	if err != nil {
		t.Fatal(err)
	}
	if s := quitting.Of(); s.Invocations != 60 || s.Errors != 0 || quitting.Opened != 60 || quitting.Refused != 0 {
		t.Errorf("connect and quit: %+v, %d opened, %d refused", s, quitting.Opened, quitting.Refused)
	}
}

func TestRunWithoutWhatItNeeds(t *testing.T) {
	t.Parallel()
	missing := small()
	missing.Host = "no/such/binary"
	broken := small()
	broken.Package = t.TempDir()
	for name, c := range map[string]struct {
		options Options
		want    string
	}{
		"no host":       {missing, "start binary"},
		"no package":    {broken, "start the local host: it ended"},
		"no broker":     {Options{Users: 1, Invocations: 10, Workers: 1, URL: "http://127.0.0.1:1", QueueURL: "http://127.0.0.1:1"}, "read queue heartbeats"},
		"bad Redis URL": {Options{Users: 1, Invocations: 10, Workers: 1, URL: "http://127.0.0.1:1", RedisURL: "127.0.0.1:secret"}, "must look like redis://"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := Run(t.Context(), c.options)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("the error is %v, want %q in it", err, c.want)
			}
		})
	}
}
