package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/config"
	"userconnectivity/handler/health"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/maintenance"
)

// TestHangingCheck has a part of health ignore its deadline: health answers all the same, and no second check of the
// part is begun.
func TestHangingCheck(t *testing.T) {
	t.Parallel()
	a := &app{log: slog.New(slog.DiscardHandler)}
	end := make(chan struct{})
	var begun atomic.Int32
	hang := func(context.Context) health.Part {
		begun.Add(1)
		<-end
		return health.Part{}
	}
	var calls sync.WaitGroup
	for range 3 {
		calls.Go(func() {
			if p := a.look(t.Context(), "redis", hang); p.Status != health.Down || !strings.HasPrefix(p.Detail, "no answer within 1.8s; the look at it hangs since 1.8s") || p.Age < healthTimeout {
				t.Errorf("part %+v", p)
			}
		})
	}
	calls.Wait()
	if n := begun.Load(); n != 1 {
		t.Errorf("%d checks at the same time", n)
	}
	var last sync.WaitGroup
	last.Go(func() {
		if p := a.look(t.Context(), "redis", hang); p.Status != "" {
			t.Errorf("after the hanging check ended: %+v", p)
		}
	})
	close(end)
	last.Wait()
}

func TestCheckThatPanics(t *testing.T) {
	t.Parallel()
	a := &app{log: slog.New(slog.DiscardHandler)}
	p := a.look(t.Context(), "queue", func(context.Context) health.Part { panic("boo") })
	if p.Status != health.Degraded || !strings.Contains(p.Detail, "panicked") || strings.Contains(p.Detail, "boo") {
		t.Errorf("part %+v", p)
	}
}

// runApp builds an app on a Redis, and runs its breaker and its subscription until the test ends.
func runApp(t *testing.T, url string, log *slog.Logger, settings map[string]string) *app {
	t.Helper()
	cfg, problems := config.FromEnv(func(name string) (string, bool) {
		known := map[string]string{"REDIS_URL": url, "DATA_DIR": t.TempDir(), "REDIS_MAINTENANCE_EVENTS": "on"}
		if v, ok := settings[name]; ok {
			return v, true
		}
		v, ok := known[name]
		return v, ok
	})
	a := build(cfg, problems, log)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { a.breaker.Run(ctx) })
	running.Go(func() { a.subscribe(ctx) })
	t.Cleanup(func() {
		stop()
		running.Wait()
		if err := a.close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// TestSubscriptionThatDoesNotStand: health and one line in the log say why, and what to do.
func TestSubscriptionThatDoesNotStand(t *testing.T) {
	t.Parallel()
	for name, settings := range map[string]map[string]string{
		"listener": {},
		"redis":    {"AzureWebJobs_ExpirationListener_Disabled": "true"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testkit.Start(t)
			raw := server.Client()
			t.Cleanup(func() { _ = raw.Close() })
			do := func(args ...any) {
				t.Helper()
				if err := raw.Do(t.Context(), args...).Err(); err != nil {
					t.Fatal(err)
				}
			}
			const secret = "pass-w0rd"
			do("acl", "setuser", "app", "on", ">"+secret, "~*", "+@all", "resetchannels")
			log := &testkit.Output{}
			a := runApp(t, "redis://app:"+secret+"@"+server.Addr, slog.New(slog.NewTextHandler(log, nil)), settings)
			if name == "listener" { // it must run for its part to look further
				ctx, stop := context.WithCancel(t.Context())
				var running sync.WaitGroup
				running.Go(func() { a.listener.Run(ctx) })
				t.Cleanup(func() {
					stop()
					running.Wait()
				})
			}
			// found waits for what a part of health says.
			found := func(what string, holds func(status health.Status, detail string) bool) {
				t.Helper()
				testkit.Eventually(t, what, func(ctx context.Context, _ *redis.Client) (bool, error) {
					part := a.Health(ctx)[name]
					if strings.Contains(fmt.Sprint(part), secret) {
						t.Fatalf("the password is shown: %v", part)
					}
					return holds(part.Status, part.Detail), fmt.Errorf("%v", part)
				}, server)
			}
			refused := func() string { return raw.Info(t.Context(), "errorstats").Val() }
			found("it is told", func(status health.Status, detail string) bool {
				return status == health.Degraded && strings.Contains(detail, "do not come in") &&
					strings.Contains(detail, "the app's user in Redis lacks a permission") && strings.Contains(detail, "&*")
			})
			before := refused()
			testkit.Eventually(t, "it tries again", func(context.Context, *redis.Client) (bool, error) { return refused() != before, nil }, server)
			const down, up = "subscription does not stand", "subscription stands again"
			if n := log.Count(down); n != 1 || log.Count(secret) != 0 || log.Count("level=WARN msg=\"the Redis "+down) != 1 || log.Count("lacks a permission") == 0 {
				t.Errorf("%d lines: %s", n, log)
			}
			if state := a.breaker.State(); state.Opened != 0 {
				t.Errorf("the breaker opened for that: %s", state.Reason)
			}
			do("acl", "setuser", "app", "allchannels")
			found("it is well", func(status health.Status, detail string) bool { return !strings.Contains(detail, "do not come in") })
			testkit.Eventually(t, "told once", func(context.Context, *redis.Client) (bool, error) { return log.Count(up) == 1, nil }, server)
			do("client", "kill", "type", "pubsub")
			testkit.Eventually(t, "told again", func(context.Context, *redis.Client) (bool, error) { return log.Count(up) == 2, nil }, server)
			if n := log.Count(down); n != 2 {
				t.Errorf("%d outages told, and there were two", n)
			}
		})
	}
}

// TestNodesInHealth: on a cluster health tells the breaker of each primary, and one that is open is no end.
func TestNodesInHealth(t *testing.T) {
	t.Parallel()
	c := testkit.StartCluster(t, 3, 0)
	a := runApp(t, "redis://"+c.Primaries[0].Addr, slog.New(slog.DiscardHandler), nil)
	status := func() (part health.Part, open []string) {
		part = a.Health(t.Context())["redis"]
		nodes := part.Figures.(redisFigures).Nodes
		for _, primary := range c.Primaries {
			node, known := nodes[primary.Addr]
			switch {
			case !known:
				t.Errorf("%s is missing: %v", primary.Addr, part)
			case node.Breaker == maintenance.Open:
				open = append(open, primary.Addr)
				if node.Detail == "" {
					t.Errorf("no reason: %v", node)
				}
			}
		}
		return part, open
	}
	if part, open := status(); part.Status != "" || part.Figures.(redisFigures).Breaker != maintenance.Closed || open != nil {
		t.Fatal(part)
	}
	for _, away := range c.Primaries {
		_, port, _ := net.SplitHostPort(away.Addr)
		a.breaker.Notify(maintenance.Parse("NotificationType|NodeMaintenanceStart|NonSSLPort|"+port, time.Now()))
		part, open := status()
		if part.Status != health.Degraded || part.Figures.(redisFigures).Breaker != maintenance.Open || len(open) != 1 || open[0] != away.Addr || !strings.HasPrefix(part.Detail, away.Addr+": ") {
			t.Errorf("while %s is away: %v", away.Addr, part)
		}
		a.breaker.Notify(maintenance.Parse("NotificationType|NodeMaintenanceFailoverComplete|NonSSLPort|"+port, time.Now()))
		testkit.Eventually(t, "closed", func(context.Context, *redis.Client) (bool, error) { return !a.breaker.AnyOpen(), nil }, away)
	}
}
