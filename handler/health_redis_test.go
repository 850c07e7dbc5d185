package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

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
				detail, _ := part["detail"].(string)
				return part["status"] == "down" && part["breaker"] == maintenance.Open && strings.Contains(detail, c.want), fmt.Errorf("%v", part)
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
		status, want    string
	}{
		"full":             {set("maxmemory", "1"), set("maxmemory", "0"), "down", "redis is full"},
		"too few replicas": {set("min-replicas-to-write", "3"), set("min-replicas-to-write", "0"), "down", "too few replicas"},
		"read-only": {
			func(ctx context.Context, c *redis.Client) error {
				return c.Do(ctx, "replicaof", "127.0.0.1", "1").Err()
			},
			func(ctx context.Context, c *redis.Client) error { return c.Do(ctx, "replicaof", "no", "one").Err() },
			"down", "REDIS_URL names a read-only replica",
		},
		"evicts": {set("maxmemory-policy", "allkeys-lru"), set("maxmemory-policy", "noeviction"), "degraded", "set maxmemory-policy to noeviction"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testkit.Start(t)
			raw := server.Client()
			t.Cleanup(func() { _ = raw.Close() })
			a := runApp(t, server.URL(), slog.New(slog.DiscardHandler), nil)
			is := func(status, want string) {
				t.Helper()
				testkit.Eventually(t, "health is "+status, func(ctx context.Context, _ *redis.Client) (bool, error) {
					part := a.Health(ctx)["redis"]
					detail, _ := part["detail"].(string)
					return part["status"] == status && strings.Contains(detail, want), fmt.Errorf("%v", part)
				}, server)
			}
			is("ok", "")
			if err := c.change(t.Context(), raw); err != nil {
				t.Fatal(err)
			}
			is(c.status, c.want)
			if err := c.restore(t.Context(), raw); err != nil {
				t.Fatal(err)
			}
			is("ok", "")
		})
	}
}
