package maintenance

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestWhichNodesAMessageIsAbout(t *testing.T) {
	t.Parallel()
	azure := []string{"20.1.2.3:15000", "20.1.2.3:15001", "20.1.2.3:15002"}
	own := []string{"10.0.0.1:6379", "10.0.0.2:6379", "[2001:db8::3]:6380"}
	names := []string{"a.example.net:15000", "b.example.net:15001"}
	const all = "all"
	tests := map[string]struct {
		nodes []string
		raw   string
		want  string // the nodes, with blanks between
	}{
		"address and port":                          {azure, "Start|IPAddress|20.1.2.3|SSLPort|15001|NonSSLPort|13001", azure[1]},
		"address and plain port":                    {azure, "Start|IPAddress|20.1.2.3|SSLPort|16001|NonSSLPort|15002", azure[2]},
		"a port only":                               {azure, "Start|IPAddress||SSLPort|15001|NonSSLPort|13001", azure[1]},
		"another address, a port only one has":      {azure, "Start|IPAddress|10.9.9.9|SSLPort|15001", azure[1]},
		"address, a port that none has":             {azure, "Start|IPAddress|20.1.2.3|SSLPort|15009", ""},
		"an address that several have":              {azure, "Start|IPAddress|20.1.2.3", all},
		"an address that one has":                   {own, "Start|IPAddress|10.0.0.2", own[1]},
		"IPv6":                                      {own, "Start|IPAddress|2001:db8::3|SSLPort|6380", own[2]},
		"a port that several have":                  {own, "Start|SSLPort|6379", own[0] + " " + own[1]},
		"another address, a port that several have": {own, "Start|IPAddress|10.9.9.9|SSLPort|6379", ""},
		"another address":                           {own, "Start|IPAddress|10.9.9.9", ""},
		"neither address nor port":                  {own, "Start", all},
		"nodes by name":                             {names, "Start|IPAddress|20.1.2.3|SSLPort|15001", names[1]},
		"the end of one":                            {azure, "Ended|IPAddress|20.1.2.3|SSLPort|15001", azure[1]},
		"the end of another":                        {own, "Ended|IPAddress|10.9.9.9|SSLPort|6379", all},
		"a failover to another":                     {own, "FailoverComplete|IPAddress|10.9.9.9", all},
		"one node alone, another address":           {own[:1], "Start|IPAddress|10.9.9.9|SSLPort|1", own[0]},
		"a single server":                           {nil, "Start|IPAddress|10.9.9.9|SSLPort|1", "one"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := NewSet(SetConfig{Log: quiet()})
			s.SetNodes(tt.nodes)
			about := s.about(Parse("NotificationType|NodeMaintenance"+tt.raw, received))
			got := []string{}
			for node, b := range s.nodes.Load().byNode {
				if slices.Contains(about, b) {
					got = append(got, node)
				}
			}
			want := strings.Fields(tt.want)
			switch tt.want {
			case all:
				want = slices.Clone(tt.nodes)
			case "one":
				want = []string{oneServer}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) || len(about) != len(want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

// openNodes are the nodes whose breaker is open.
func openNodes(s *Set) []string {
	synctest.Wait()
	open := []string{}
	for node, state := range s.State().Nodes {
		if state.Status == Open {
			open = append(open, node)
		}
	}
	slices.Sort(open)
	return open
}

func TestTwoNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := map[string]*server{"10.0.0.1:6379": {}, "10.0.0.2:6379": {}, "10.0.0.3:6379": {}}
		s := NewSet(SetConfig{Log: quiet(), Ping: func(ctx context.Context, node string) error { return servers[node].ping(ctx) }})
		s.SetNodes([]string{"10.0.0.1:6379"})
		run(t, s.Run)
		synctest.Wait()
		s.SetNodes([]string{"10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.2:6379"})
		var told []Type
		s.Subscribe(func(e Event) { told = append(told, e.Type) })
		expectOpen := func(want ...string) {
			t.Helper()
			if got := openNodes(s); !slices.Equal(got, want) {
				t.Fatalf("open: %v, want %v", got, want)
			}
			state := s.State()
			if s.AnyOpen() != (len(want) > 0) || (state.Status == Open) != (len(want) > 0) {
				t.Fatalf("any open: %v, %s, want %v", s.AnyOpen(), state.Status, want)
			}
			after, open := s.Open("")
			if all := len(want) == len(state.Nodes); open != all || (after > 0) != all {
				t.Fatalf("all open: %v, to be tried again after %v, want %v of %d", open, after, want, len(state.Nodes))
			}
			for node := range state.Nodes {
				if _, open := s.Open(node); open != slices.Contains(want, node) {
					t.Fatalf("%s is open: %v, want %v", node, open, want)
				}
				if strings.Contains(state.Reason, node) != slices.Contains(want, node) && len(want) > 0 {
					t.Fatalf("reason %q, want %v", state.Reason, want)
				}
			}
			if _, open := s.Open("10.9.9.9:1"); open {
				t.Fatal("a node is open that is not in the set")
			}
		}

		s.Notify(Parse("NotificationType|NodeMaintenanceStart|IPAddress|10.0.0.2|NonSSLPort|6379", time.Now()))
		expectOpen("10.0.0.2:6379")
		servers["10.0.0.2:6379"].mode.Store(down)
		s.Lost("10.0.0.2:6379")
		pass(time.Minute)
		expectOpen("10.0.0.2:6379")
		servers["10.0.0.2:6379"].mode.Store(up)
		pass(time.Second)
		expectOpen()

		// One fails, the other does not.
		servers["10.0.0.1:6379"].mode.Store(down)
		s.Failed("10.9.9.9:1", &net.OpError{Op: "dial", Err: errDown}) // a replica
		expectOpen()
		s.Failed("10.0.0.1:6379", &net.OpError{Op: "dial", Err: errDown})
		expectOpen("10.0.0.1:6379")
		if servers["10.0.0.2:6379"].mode.Load() != up {
			t.Fatal("the wrong server is down")
		}

		// A node that fails is replaced: its breaker goes with it, the other stays as it was.
		kept := s.Breaker("10.0.0.2:6379")
		s.SetNodes([]string{"10.0.0.2:6379", "10.0.0.3:6379"})
		if s.Breaker("10.0.0.2:6379") != kept || s.Breaker("10.0.0.1:6379") != nil {
			t.Fatal("the wrong breakers were kept")
		}
		expectOpen()
		s.Notify(Parse("NotificationType|NodeMaintenanceStart", time.Now()))
		expectOpen("10.0.0.3:6379") // the other began one a minute ago: sent again
		pass(time.Hour)
		expectOpen()
		s.Notify(Parse("NotificationType|NodeMaintenanceStart", time.Now()))
		s.Notify(Parse("NotificationType|NodeMaintenanceStart", time.Now())) // the copy that another node sent
		expectOpen("10.0.0.2:6379", "10.0.0.3:6379")
		pass(hold)
		expectOpen()
		s.Notify(Parse("junk", time.Now()))
		expectOpen()
		state := s.State()
		if !slices.Equal(told, []Type{Start, Start, Start, Unknown}) || len(state.Events) != 4 ||
			!maps.Equal(state.Counts, map[Type]int64{Start: 3, Unknown: 1}) {
			t.Errorf("told %v; state: %+v", told, state)
		}
		if state.Opened != 5 { // one of them by a node that has left
			t.Errorf("opened %d times: %+v", state.Opened, state)
		}

		// Redis's own notifications are about the node that sent them.
		s.Announced("10.0.0.3:6379", []any{"FAILING_OVER", int64(1), int64(2)})
		expectOpen()
		pass(2*time.Second - early)
		expectOpen("10.0.0.3:6379")
		s.Announced("10.0.0.3:6379", []any{"FAILED_OVER", int64(2)})
		pass(probeEvery)
		expectOpen()
		// A fault on the way to no node in particular is one of all.
		servers["10.0.0.2:6379"].mode.Store(down)
		servers["10.0.0.3:6379"].mode.Store(down)
		s.Failed("", &net.OpError{Op: "dial", Err: errDown})
		expectOpen("10.0.0.2:6379", "10.0.0.3:6379")
		servers["10.0.0.2:6379"].mode.Store(up)
		servers["10.0.0.3:6379"].mode.Store(up)
		pass(time.Second)
		expectOpen()
	})
}

func TestSetStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var up server
		s := NewSet(SetConfig{Log: quiet(), Ping: func(ctx context.Context, _ string) error { return up.ping(ctx) }})
		s.SetNodes([]string{"a:1", "b:2"})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.Run(ctx)
		}()
		synctest.Wait()
		stop()
		<-done
		s.SetNodes([]string{"a:1", "c:3"}) // starts nothing any more: the test would not end
		s.Notify(Event{Type: Start})
		if b := s.Breaker("a:1"); b == nil {
			t.Error("no breaker")
		} else if _, open := b.Open(); open {
			t.Error("opened after its end")
		}
	})
}

// A single server needs no name: until more is known, everything is about it.
func TestSingleServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var single server
		var lines bytes.Buffer
		s := NewSet(SetConfig{Log: slog.New(slog.NewTextHandler(&lines, nil)), Ping: func(ctx context.Context, node string) error {
			if node != "" {
				t.Errorf("a PING of node %q", node)
			}
			return single.ping(ctx)
		}})
		run(t, s.Run)
		expectOpen := func(want bool) {
			t.Helper()
			synctest.Wait()
			_, open := s.Open("")
			state := s.State()
			if open != want || s.AnyOpen() != want || (state.Status == Open) != want || state.Nodes != nil {
				t.Fatalf("open %v, any %v, want %v; state %+v", open, s.AnyOpen(), want, state)
			}
		}
		expectOpen(false)
		single.mode.Store(down)
		s.Failed("", &net.OpError{Op: "dial", Err: errDown})
		s.Succeeded("")
		expectOpen(true)
		single.mode.Store(up)
		pass(time.Second)
		expectOpen(false)
		s.SetNodes(nil)
		s.Announced("", []any{"MOVING", int64(1), int64(0), nil})
		expectOpen(true)
		s.Lost("")
		pass(time.Second)
		expectOpen(false)
		if state := s.State(); state.Opened != 2 || !strings.Contains(state.Reason, "maintenance that starts at") || state.Since.IsZero() {
			t.Errorf("state %+v", state)
		}
		if strings.Contains(lines.String(), "node=") || strings.Contains(lines.String(), "primaries") {
			t.Errorf("a single server is named in the log:\n%s", lines.String())
		}
		// It was the way to a cluster.
		single.mode.Store(down)
		s.Failed("", &net.OpError{Op: "dial", Err: errDown})
		expectOpen(true)
		single.mode.Store(up)
		s.SetNodes([]string{"10.0.0.1:6379"})
		if state := s.State(); s.AnyOpen() || state.Opened != 3 || len(state.Nodes) != 1 {
			t.Errorf("state %+v", state)
		}
		s.SetNodes([]string{})
		expectOpen(false)
	})
}

func BenchmarkSetOpen(b *testing.B) {
	s := NewSet(SetConfig{Log: quiet()})
	b.ReportAllocs()
	for b.Loop() {
		if _, open := s.Open(""); open {
			b.Fatal("open")
		}
	}
}
