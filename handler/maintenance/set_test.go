package maintenance

import (
	"context"
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
		"no nodes":                                  {nil, "Start", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := NewSet(SetConfig{Log: quiet()})
			s.SetNodes(tt.nodes)
			about := s.about(Parse("NotificationType|NodeMaintenance"+tt.raw, received))
			got := []string{}
			for node, b := range *s.nodes.Load() {
				if slices.Contains(about, b) {
					got = append(got, node)
				}
			}
			want := strings.Fields(tt.want)
			if tt.want == all {
				want = slices.Clone(tt.nodes)
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
			if _, open := s.Open(); open != (len(want) > 0) {
				t.Fatalf("any open: %v, want %v", open, want)
			}
		}

		s.Notify(Parse("NotificationType|NodeMaintenanceStart|IPAddress|10.0.0.2|NonSSLPort|6379", time.Now()))
		expectOpen("10.0.0.2:6379")
		servers["10.0.0.2:6379"].mode.Store(down)
		s.Breaker("10.0.0.2:6379").ConnectionLost()
		pass(time.Minute)
		expectOpen("10.0.0.2:6379")
		servers["10.0.0.2:6379"].mode.Store(up)
		pass(time.Second)
		expectOpen()

		// One fails, the other does not.
		servers["10.0.0.1:6379"].mode.Store(down)
		s.Breaker("10.0.0.1:6379").Failed(&net.OpError{Op: "dial", Err: errDown})
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
