package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/health"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/maintenance"
)

// TestHealthSaysWhyRedisIsAway: also while the breaker is open, when nothing is asked of Redis, health has the cause and
// what to do.
func TestHealthSaysWhyRedisIsAway(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	locked := testkit.Start(t, "--requirepass", "pass-w0rd")
	for name, c := range map[string]struct{ url, want string }{
		"nothing listens":     {"redis://127.0.0.1:1", "nothing listens at the host and port of REDIS_URL"},
		"unknown host":        {"redis://no-such-host.invalid:6379", "names a host that cannot be found"},
		"TLS to a plain port": {"rediss://" + server.Addr, "asks for TLS, and the port seems to speak plain text"},
		"a wrong password":    {"redis://:wr0ng@" + locked.Addr, "redis refuses the user or password in REDIS_URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := runApp(t, c.url, slog.New(slog.DiscardHandler), nil)
			testkit.Eventually(t, "health says why", func(ctx context.Context, _ *redis.Client) (bool, error) {
				part := a.Health(ctx)["redis"]
				shown, _ := part.Figures.(redisFigures)
				return part.Status == health.Down && shown.Breaker == maintenance.Open && strings.Contains(part.Detail, c.want), fmt.Errorf("%+v", part)
			}, server)
			if text := fmt.Sprint(a.Health(t.Context())["redis"]); strings.Contains(text, "wr0ng") {
				t.Errorf("a secret in %s", text)
			}
		})
	}
}

// TestHealthTriesToWrite: a Redis that answers and stores nothing is not well, and neither is one that evicts.
func TestHealthTriesToWrite(t *testing.T) {
	t.Parallel()
	set := func(name, value string) func(context.Context, *redis.Client) error {
		return func(ctx context.Context, c *redis.Client) error { return c.ConfigSet(ctx, name, value).Err() }
	}
	for name, c := range map[string]struct {
		change, restore func(context.Context, *redis.Client) error
		status          health.Status
		want            string
	}{
		"full":             {set("maxmemory", "1"), set("maxmemory", "0"), health.Down, "redis is full"},
		"too few replicas": {set("min-replicas-to-write", "3"), set("min-replicas-to-write", "0"), health.Down, "too few replicas"},
		"read-only": {
			func(ctx context.Context, c *redis.Client) error {
				return c.Do(ctx, "replicaof", "127.0.0.1", "1").Err()
			},
			func(ctx context.Context, c *redis.Client) error { return c.Do(ctx, "replicaof", "no", "one").Err() },
			health.Down, "REDIS_URL names a read-only replica",
		},
		"evicts": {set("maxmemory-policy", "allkeys-lru"), set("maxmemory-policy", "noeviction"), health.Degraded, "set maxmemory-policy to noeviction"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testkit.Start(t)
			raw := server.Client()
			t.Cleanup(func() { _ = raw.Close() })
			a := runApp(t, server.URL(), slog.New(slog.DiscardHandler), nil)
			is := func(status health.Status, want string) {
				t.Helper()
				testkit.Eventually(t, "health is "+string(status), func(ctx context.Context, _ *redis.Client) (bool, error) {
					part := a.Health(ctx)["redis"]
					return cmp.Or(part.Status, health.OK) == status && strings.Contains(part.Detail, want), fmt.Errorf("%+v", part)
				}, server)
			}
			is(health.OK, "")
			if err := c.change(t.Context(), raw); err != nil {
				t.Fatal(err)
			}
			is(c.status, c.want)
			if err := c.restore(t.Context(), raw); err != nil {
				t.Fatal(err)
			}
			is(health.OK, "")
		})
	}
}

// TestHealthTellsAllFaultsOfRedis: one does not hide another.
func TestHealthTellsAllFaultsOfRedis(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t, "--maxmemory-policy", "volatile-lru")
	raw := server.Client()
	t.Cleanup(func() { _ = raw.Close() })
	const secret = "pass-w0rd"
	if err := raw.Do(t.Context(), "acl", "setuser", "app", "on", ">"+secret, "~*", "+@all", "resetchannels").Err(); err != nil {
		t.Fatal(err)
	}
	a := runApp(t, "redis://app:"+secret+"@"+server.Addr, slog.New(slog.DiscardHandler), map[string]string{
		"AzureWebJobs_ExpirationListener_Disabled": "true", "REDIS_MAX_CLIENTS": "3", "MAX_INSTANCES": "10",
	})
	tells := func(status health.Status, wants ...string) {
		t.Helper()
		testkit.Eventually(t, "health tells all", func(ctx context.Context, _ *redis.Client) (bool, error) {
			part := a.Health(ctx)["redis"]
			holds := part.Status == status
			for _, want := range wants {
				holds = holds && strings.Count(part.Detail, want) == 1
			}
			return holds, fmt.Errorf("%+v", part)
		}, server)
	}
	const evicts, budget, subscription = "set maxmemory-policy to noeviction", "and Redis allows 3", "maintenance messages do not come in"
	tells(health.Degraded, evicts, budget, subscription)
	if err := raw.ConfigSet(t.Context(), "min-replicas-to-write", "3").Err(); err != nil {
		t.Fatal(err)
	}
	tells(health.Down, "no heartbeat can be stored", "too few replicas", evicts, budget, subscription)
}

// TestHealthTellsOfALaterVersion: what only a process of another version can go on with is told, and everything else goes on.
func TestHealthTellsOfALaterVersion(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	raw := server.Client()
	t.Cleanup(func() { _ = raw.Close() })
	s := serveApp(t, server.URL(), map[string]string{"REDIS_PARTITIONS": "1"})
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "ann", "session": "s"})
	due := raw.Keys(t.Context(), "uc*due").Val()
	if len(due) != 1 {
		t.Fatal(due)
	}
	for _, member := range []string{"user#2/session", "/group/g"} {
		if err := raw.ZAdd(t.Context(), due[0], redis.Z{Score: 1, Member: member}).Err(); err != nil {
			t.Fatal(err)
		}
	}
	waits := func(ctx context.Context, _ *redis.Client) (bool, error) {
		part := s.Health(ctx)["redis"]
		return part.Status == health.Degraded && strings.Contains(part.Detail, "2 deadlines that are due are of a form that this version does not know"), fmt.Errorf("%+v", part)
	}
	testkit.Eventually(t, "what waits is told", waits, server)
	if changed, err := raw.SetXX(t.Context(), "uc{p0}ann", "b1700000000123,new=1", 0).Result(); err != nil || !changed {
		t.Fatal(err, raw.Keys(t.Context(), "*").Val())
	}
	s.must(503, "POST", "/api/heartbeat", map[string]any{"user": "ann", "session": "s"})
	part := s.Health(t.Context())["redis"]
	if part.Status != health.Degraded || !strings.Contains(part.Detail, "of users whose record only a later version knows") {
		t.Errorf("%+v", part)
	}
}

// TestHealthTellsAMissingRight: also one that no look of health needs. A caller is told that health has the reason.
func TestHealthTellsAMissingRight(t *testing.T) {
	t.Parallel()
	for right, call := range map[string]struct {
		method, path string
		body         any
	}{
		"xadd":   {"POST", "/api/heartbeat", map[string]any{"user": "ann"}},
		"set":    {"POST", "/api/heartbeat", map[string]any{"user": "ann"}},
		"unlink": {"POST", "/api/leave", map[string]any{"user": "ann"}},
		"get":    {"GET", "/api/users/ann", nil},
	} {
		t.Run(right, func(t *testing.T) {
			t.Parallel()
			server := testkit.Start(t)
			raw := server.Client()
			t.Cleanup(func() { _ = raw.Close() })
			s := serveApp(t, server.URL(), map[string]string{"AzureWebJobs_ExpirationListener_Disabled": "true"})
			s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "bob"})
			if part := s.Health(t.Context())["redis"]; part.Detail != "" {
				t.Errorf("with all rights: %+v", part)
			}
			if err := raw.Do(t.Context(), "acl", "setuser", "default", "-"+right).Err(); err != nil {
				t.Fatal(err)
			}
			if call.path == "/api/leave" {
				s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "ann"})
			}
			if text := s.must(503, call.method, call.path, call.body); !strings.Contains(string(text), "health says why") {
				t.Errorf("%s", text)
			}
			part := s.Health(t.Context())["redis"]
			if part.Status == health.OK || part.Status == "" || strings.Count(part.Detail, "the app's user in Redis lacks a permission; docs/deploy.md has the exact rights") != 1 ||
				strings.Contains(part.Detail, "health says why") {
				t.Errorf("%+v", part)
			}
		})
	}
}
