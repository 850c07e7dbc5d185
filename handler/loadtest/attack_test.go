package loadtest

import (
	"net/http"
	"strings"
	"testing"

	vegeta "github.com/tsenart/vegeta/v12/lib"
)

func TestTargets(t *testing.T) {
	t.Parallel()
	q := &queueClient{url: "http://broker", prefix: "p-"}
	to := target{urls: []string{"http://a", "http://b"}, message: q.message}
	next := to.targeter(Options{Users: 10, Workers: 2}, round[:])
	type place struct {
		Function
		host string
	}
	functions, places, sent := map[Function]int{}, map[place]int{}, map[string]bool{}
	for range 4 * len(round) {
		var v vegeta.Target
		if err := next(&v); err != nil {
			t.Fatal(err)
		}
		f := functionOf(&vegeta.Result{Method: v.Method, URL: v.URL})
		functions[f]++
		if f == HeartbeatMessages {
			if sent[string(v.Body)] {
				t.Errorf("sent twice: %s", v.Body)
			}
			sent[string(v.Body)] = true
			continue
		}
		places[place{f, v.URL[:len("http://a")]}]++
		if f == User && v.Method != http.MethodGet || f == Heartbeat && !strings.HasPrefix(string(v.Body), `{"user":"load-`) {
			t.Errorf("%s: %s %s %s", f, v.Method, v.URL, v.Body)
		}
	}
	if functions[Heartbeat] != 20 || functions[User] != 20 || functions[HeartbeatMessages] != 8 {
		t.Errorf("functions %v", functions)
	}
	for _, f := range []Function{Heartbeat, User} { // both functions on both hosts
		if a, b := places[place{f, "http://a"}], places[place{f, "http://b"}]; a != 10 || b != 10 {
			t.Errorf("%s: %d on one host, %d on the other", f, a, b)
		}
	}
}

func TestKindOf(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		r    vegeta.Result
		want string
	}{
		{"success", vegeta.Result{Code: 200, Body: []byte(`{"detail":"no error"}`)}, ""},
		{"status", vegeta.Result{Code: 502, Error: "502 Bad Gateway", Body: []byte("<html>")}, "502 Bad Gateway"},
		{
			"problem",
			vegeta.Result{Code: 503, Error: "503 Service Unavailable", Body: []byte(`{"detail":"read user load-17 from Redis"}`)},
			"503 Service Unavailable: read user from Redis",
		},
		{
			"transport",
			vegeta.Result{Error: `Get "http://127.0.0.1:7071/api/users/load-1": dial tcp 127.0.0.1:7071: connect: connection refused`},
			"dial tcp connect: connection refused",
		},
		{
			"connection",
			vegeta.Result{Error: `Post "http://127.0.0.1:7071/api/heartbeat": read tcp 127.0.0.1:40310->127.0.0.1:7071: read: connection reset by peer`},
			"read tcp read: connection reset by peer",
		},
		{"long", vegeta.Result{Error: strings.Repeat("ä", 100)}, strings.Repeat("ä", 80)},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := kindOf(&c.r); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
