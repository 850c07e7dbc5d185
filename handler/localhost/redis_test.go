package localhost

import (
	"context"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
)

func redisClient(t *testing.T, url string) *goredis.Client {
	t.Helper()
	o, err := goredis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	c := goredis.NewClient(o)
	t.Cleanup(func() { c.Close() })
	return c
}

// handlerApp is an app whose handler shows its environment.
func handlerApp(mode RedisMode, calls chan call) testApp {
	return testApp{
		functions: map[string]string{"F": fn(httpFunction, "f")},
		options:   Options{Redis: mode},
		script:    func(c call) reply { calls <- c; return ok },
	}
}

func TestRedisServerIsPersistedAndSupervised(t *testing.T) {
	t.Parallel()
	calls := make(chan call, 1)
	app := handlerApp(RedisAuto, calls)
	app.options.DataDir = t.TempDir()
	r := start(t, app)
	request(t, "GET", r.URL, "/api/f", nil, nil)
	if env := strings.Join(next(t, calls).Environ, "\n"); !strings.Contains(env, "REDIS_URL="+r.RedisURL+"\n") || r.RedisPID == 0 {
		t.Errorf("status %+v, environment\n%s", r.Status, env)
	}
	c := redisClient(t, r.RedisURL)
	for setting, want := range map[string]string{"notify-keyspace-events": "xE", "appendonly": "yes", "appendfsync": "everysec", "save": "", "bind": "127.0.0.1"} {
		if got := c.ConfigGet(t.Context(), setting).Val()[setting]; got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	if err := c.Set(t.Context(), "key", "value", 0).Err(); err != nil {
		t.Fatal(err)
	}
	// It comes back when it is killed, at the same address and with its data.
	r.redis.kill()
	again := r.waitReady(t)
	if again.RedisURL != r.RedisURL || again.RedisPID == r.RedisPID || again.HandlerPID != r.HandlerPID {
		t.Errorf("status %+v, was %+v", again, r.Status)
	}
	if got := redisClient(t, r.RedisURL).Get(t.Context(), "key").Val(); got != "value" {
		t.Errorf("after a kill: %q", got)
	}
	if err := r.end(t); err != nil {
		t.Fatal(err)
	}
	if err := ping(t.Context(), r.redis.(*redisServer).port); err == nil {
		t.Error("redis-server still answers")
	}
	r = start(t, app)
	if got := redisClient(t, r.RedisURL).Get(t.Context(), "key").Val(); got != "value" {
		t.Errorf("after a restart of the host: %q", got)
	}
}

func TestRedisServerWithoutNotifications(t *testing.T) {
	t.Parallel()
	app := handlerApp(RedisServer, nil)
	app.options.NoRedisNotifications = true
	app.environ = []string{"REDIS_URL=redis://elsewhere:6379"} // a mode that is asked for beats the setting
	r := start(t, app)
	c := redisClient(t, r.RedisURL)
	if err := c.ConfigGet(t.Context(), "notify-keyspace-events").Err(); err == nil || !strings.Contains(err.Error(), "unknown command") {
		t.Errorf("CONFIG GET: %v", err)
	}
	if err := c.Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
}

func TestMiniRedisSurvivesTheHandler(t *testing.T) {
	t.Parallel()
	r := start(t, testApp{
		functions: map[string]string{"F": fn(httpFunction, "f")},
		options:   Options{Redis: RedisMini},
		script:    func(call) reply { return exit(200) },
	})
	if !strings.Contains(r.stdout.String(), "NOT persisted") {
		t.Errorf("the output does not say that nothing is kept:\n%s", r.stdout)
	}
	c := redisClient(t, r.RedisURL)
	if err := c.Set(t.Context(), "short", "value", 30*time.Millisecond).Err(); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(t.Context(), "key", "value", time.Hour).Err(); err != nil {
		t.Fatal(err)
	}
	request(t, "POST", r.URL, "/api/f", nil, strings.NewReader("x"))
	if again := r.waitReady(t); again.RedisURL != r.RedisURL {
		t.Errorf("the address changed: %+v", again)
	}
	if got := c.Get(t.Context(), "key").Val(); got != "value" {
		t.Errorf("key is %q", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for c.Exists(ctx, "short").Val() != 0 { // keys expire by the clock
		if ctx.Err() != nil {
			t.Fatal("the key does not expire")
		}
	}
}

func TestRedisMode(t *testing.T) {
	t.Parallel()
	app := handlerApp("other", nil)
	if err := launch(t, app).result(t); err == nil || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("the host ended with %v", err)
	}
	app = handlerApp(RedisServer, nil)
	app.options.DataDir = t.TempDir()
	write(t, app.options.DataDir+"/redis/appendonlydir", "not a folder")
	if err := launch(t, app).result(t); err == nil || !strings.Contains(err.Error(), "redis.log") {
		t.Errorf("the host ended with %v", err)
	}
}
