package deferral

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/maintenance"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
)

// TestOnePrimaryAway stops one primary of a real cluster, and has one announce maintenance: what belongs to it waits,
// what belongs to the others is served meanwhile, and in the end everything holds.
func TestOnePrimaryAway(t *testing.T) {
	t.Parallel()
	// The primaries do not judge each other: the client does.
	c := testkit.StartCluster(t, 3, 0, "--cluster-node-timeout", "60000")
	var client *redisconn.Client
	breakers := maintenance.NewSet(maintenance.SetConfig{Log: quiet(), Ping: func(ctx context.Context, node string) error { return client.Ping(ctx, node) }})
	client = redisconn.NewClient(redisconn.Endpoint{URL: "redis://" + c.Primaries[0].Addr}, "deferral", breakers)
	t.Cleanup(func() { _ = client.Close() })
	live := redisstore.New(client, redisstore.Config{Partitions: 16})
	t.Cleanup(live.Close)
	s := New(live, live.Away, Config{Log: quiet()})
	ctx, stop := context.WithCancel(t.Context())
	stands := make(chan struct{}, 1000)
	var running sync.WaitGroup
	running.Go(func() { breakers.Run(ctx) })
	running.Go(func() { s.Run(ctx) })
	running.Go(func() {
		client.Subscribe(ctx, redisconn.Subscriber{
			Subscribed:  func() { stands <- struct{}{} },
			Maintenance: func(text string) { breakers.Notify(maintenance.Parse(text, time.Now())) },
		}, func(error) {})
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	for range c.Primaries {
		<-stands
	}

	users := make([]string, 60)
	for i := range users {
		users[i] = fmt.Sprint("u", i)
	}
	beatsOf := func(users ...string) []presence.Beat {
		beats := make([]presence.Beat, len(users))
		for i, user := range users {
			beats[i] = presence.Beat{User: user, Session: "s", TTL: new(10 * time.Minute), At: time.Now()}
		}
		return beats
	}
	if _, err := s.Heartbeats(ctx, beatsOf(users...)); err != nil {
		t.Fatal(err)
	}
	// Of each primary's users.
	usersOf := map[string][]string{}
	for _, primary := range c.Primaries {
		raw := primary.Client()
		for _, user := range users {
			if keys, err := raw.Keys(ctx, "uc{p*}"+user).Result(); err != nil {
				t.Fatal(err)
			} else if len(keys) == 1 {
				usersOf[primary.Addr] = append(usersOf[primary.Addr], user)
			}
		}
		_ = raw.Close()
		if len(usersOf[primary.Addr]) == 0 {
			t.Fatalf("nobody is on %s", primary.Addr)
		}
	}
	eventually := func(what string, holds func() bool) {
		t.Helper()
		testkit.Eventually(t, what, func(context.Context, *redis.Client) (bool, error) {
			return holds(), fmt.Errorf("%+v, breakers %+v", s.State(), breakers.State())
		}, c.Primaries[0])
	}
	// served has the users of a primary that is there beat, read and leave: none of it may wait.
	served := func(addr string) (slowest time.Duration) {
		t.Helper()
		for _, user := range usersOf[addr] {
			began := time.Now()
			limited, cancel := context.WithTimeout(ctx, time.Second) // less than anything waits for a primary
			out, err := s.Heartbeats(limited, beatsOf(user))
			if err != nil || out[0].Change != presence.ChangeRenewed {
				t.Fatalf("a beat of %s, whose primary is there: %+v, %v", user, out, err)
			}
			if found, err := s.Users(limited, []string{user}); err != nil || found[0] == nil {
				t.Fatalf("a look at %s, whose primary is there: %v", user, err)
			}
			cancel()
			slowest = max(slowest, time.Since(began))
		}
		return slowest
	}
	// deferred has those of the primary that is away do so.
	deferred := func(addr string) (slowest time.Duration) {
		t.Helper()
		for _, user := range usersOf[addr] {
			began := time.Now()
			out, err := s.Heartbeats(ctx, beatsOf(user))
			if err != nil || out[0].Change != presence.ChangeDeferred {
				t.Fatalf("a beat of %s, whose primary is away: %+v, %v", user, out, err)
			}
			var away *fault.Error
			if _, err := s.Users(ctx, []string{user}); !errors.As(err, &away) || away.Kind != fault.Unavailable || away.RetryAfter < time.Second {
				t.Fatalf("a look at %s, whose primary is away: %v", user, err)
			}
			// What goes past the waiting room is refused before the network.
			if _, err := live.Leaves(ctx, []presence.Leave{{User: user, Session: "s"}}); !errors.As(err, &away) || away.RetryAfter < time.Second {
				t.Fatalf("a leave of %s, whose primary is away: %v", user, err)
			}
			slowest = max(slowest, time.Since(began))
		}
		return slowest
	}
	others := func(away *testkit.Redis) (there []*testkit.Redis) {
		for _, p := range c.Primaries {
			if p != away {
				there = append(there, p)
			}
		}
		return there
	}
	onlyOpen := func(away *testkit.Redis) {
		t.Helper()
		nodes := breakers.State().Nodes
		for node, state := range nodes {
			if (state.Status == maintenance.Open) != (node == away.Addr) {
				t.Errorf("the breaker of %s is %s while %s is away: %s", node, state.Status, away.Addr, state.Reason)
			}
		}
		if len(nodes) != 3 {
			t.Errorf("breakers: %+v", nodes)
		}
	}

	for round, away := range c.Primaries {
		t.Run("stopped "+fmt.Sprint(round), func(t *testing.T) {
			away.Pause()
			defer away.Resume()
			eventually("a beat waits", func() bool {
				limited, cancel := context.WithTimeout(ctx, 5*time.Second)
				defer cancel()
				out, err := s.Heartbeats(limited, beatsOf(usersOf[away.Addr][0]))
				return err == nil && out[0].Change == presence.ChangeDeferred
			})
			for _, there := range others(away) {
				t.Logf("served by %s: slowest %v", there.Addr, served(there.Addr))
			}
			onlyOpen(away)
			t.Logf("deferred: slowest %v", deferred(away.Addr))
			out, err := s.Heartbeats(ctx, beatsOf(users...))
			if err != nil {
				t.Fatal(err)
			}
			waits := 0
			for i, o := range out {
				switch {
				case o.Change == presence.ChangeDeferred:
					waits++
				case o.Change != presence.ChangeRenewed:
					t.Errorf("%s: %+v", users[i], o)
				}
			}
			if waits != len(usersOf[away.Addr]) {
				t.Errorf("%d beats wait, of %d users of that primary", waits, len(usersOf[away.Addr]))
			}
			gone := usersOf[away.Addr][1]
			if left, err := s.Leaves(ctx, []presence.Leave{{User: gone, Session: "s", At: time.Now()}}); err != nil || left[0] != presence.LeaveDeferred {
				t.Errorf("a leave: %v, %v", left, err)
			}
			if state := s.State(); state.Refused+state.Expired != 0 {
				t.Errorf("state %+v", state)
			}
			away.Resume()
			eventually("all is written", func() bool { return s.State().Items == 0 && !breakers.AnyOpen() })
			found, err := s.Users(ctx, users)
			if err != nil {
				t.Fatal(err)
			}
			for i, u := range found {
				if want := map[bool]presence.Status{true: presence.Offline, false: presence.Online}[users[i] == gone]; u == nil || u.Status != want {
					t.Errorf("%s afterwards: %+v", users[i], u)
				}
			}
			if _, err := s.Heartbeats(ctx, beatsOf(gone)); err != nil {
				t.Fatal(err)
			}
		})
	}

	t.Run("announced", func(t *testing.T) {
		away := c.Primaries[1]
		host, port, _ := net.SplitHostPort(away.Addr)
		eventually("the subscription stands", func() bool { return client.Subscription() == nil })
		raw := c.Primaries[2].Client()
		defer raw.Close()
		message := fmt.Sprintf("NotificationType|NodeMaintenanceStart|StartTimeInUTC||IsReplica|False|IPAddress|%s|SSLPort||NonSSLPort|%s", host, port)
		if err := raw.Publish(ctx, maintenance.Channel, message).Err(); err != nil {
			t.Fatal(err)
		}
		eventually("it is open", func() bool {
			_, open := breakers.Open(away.Addr)
			return open
		})
		onlyOpen(away)
		deferred(away.Addr)
		for _, there := range others(away) {
			served(there.Addr)
		}
		// While a subscription moves to another primary, a message may come over both.
		if state := breakers.State(); state.Counts[maintenance.Start] < 1 || !strings.Contains(state.Reason, away.Addr+": maintenance") {
			t.Errorf("state %+v", state)
		}
		if err := raw.Publish(ctx, maintenance.Channel, strings.Replace(message, "Start|", "Ended|", 1)).Err(); err != nil {
			t.Fatal(err)
		}
		eventually("all is written", func() bool { return s.State().Items == 0 && !breakers.AnyOpen() })
	})
	if state := s.State(); state.Refused+state.Expired != 0 {
		t.Errorf("state %+v", state)
	}
}
