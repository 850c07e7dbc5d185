package redisconn

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
)

// ear is a subscription of a test's own.
type ear struct {
	stands chan struct{} // one for each time that it stood
	lost   chan error
	mu     sync.Mutex
	heard  map[string]int
	stop   func()
}

// listen subscribes, and waits until the subscription stands so many times.
func listen(t *testing.T, client *Client, standing int) *ear {
	t.Helper()
	e := &ear{stands: make(chan struct{}, 10_000), lost: make(chan error, 10_000), heard: map[string]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		client.Subscribe(ctx, Subscriber{
			Subscribed:  func() { e.stands <- struct{}{} },
			Expired:     func(key string) { e.hear("expired " + key) },
			Maintenance: func(text string) { e.hear("maintenance " + text) },
		}, func(err error) { e.lost <- err })
	})
	e.stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(e.stop)
	for range standing {
		<-e.stands
	}
	return e
}

func (e *ear) hear(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard[what]++
}

func (e *ear) times(what string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.heard[what]
}

// hears returns once it has heard something.
func (e *ear) hears(t *testing.T, server *testkit.Redis, what string) {
	t.Helper()
	testkit.Eventually(t, "heard "+what, func(context.Context, *redis.Client) (bool, error) { return e.times(what) > 0, nil }, server)
}

func TestSubscription(t *testing.T) {
	server := testkit.Start(t)
	raw := rawClient(t, server)
	leaks := goleak.IgnoreCurrent()
	client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
	if client.Subscription() != nil {
		t.Error("a fault of a subscription that nobody wanted")
	}
	e := listen(t, client, 1)
	set := func(key string) {
		t.Helper()
		if err := raw.Set(t.Context(), key, "", time.Millisecond).Err(); err != nil {
			t.Fatal(err)
		}
	}
	set("k1")
	e.hears(t, server, "expired k1")
	if err := raw.Publish(t.Context(), "AzureRedisEvents", "NotificationType|NodeMaintenanceEnded|").Err(); err != nil {
		t.Fatal(err)
	}
	e.hears(t, server, "maintenance NotificationType|NodeMaintenanceEnded|")
	if found := mustConnections(t, raw); len(found) > 2 {
		t.Errorf("connections: %+v", found)
	}

	// Lost, it comes again; the caller is told of both.
	if err := raw.Do(t.Context(), "client", "kill", "type", "pubsub").Err(); err != nil {
		t.Fatal(err)
	}
	if err := <-e.lost; fault.KindOf(err) != fault.Unavailable {
		t.Error(err)
	}
	<-e.stands
	if err := client.Subscription(); err != nil {
		t.Errorf("while it stands: %v", err)
	}
	set("k2")
	e.hears(t, server, "expired k2")
	server.Kill()
	<-e.lost
	testkit.Eventually(t, "the fault is known", func(context.Context, *redis.Client) (bool, error) {
		err := client.Subscription()
		return err != nil && strings.Contains(err.Error(), "nothing listens at the host and port of REDIS_URL"), err
	}, server)
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	<-e.stands
	set("k3")
	e.hears(t, server, "expired k3")

	// A quiet one ends at once.
	began := time.Now()
	e.stop()
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v to end", took)
	}
	if err := client.Close(); err != nil {
		t.Error(err)
	}
	if err := goleak.Find(leaks); err != nil {
		t.Error(err)
	}
	testkit.Eventually(t, "nothing is left", func(ctx context.Context, raw *redis.Client) (bool, error) {
		found, err := connectionsOf(ctx, raw)
		return len(found) == 0, err
	}, server)
}

// TestASilentSubscriptionIsLost: a server that is gone without a word is noticed.
func TestASilentSubscriptionIsLost(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
	defer client.Close()
	client.quiet = 20 * time.Millisecond
	e := listen(t, client, 1)
	first := rawClient(t, server)
	for range 5 { // quiet, and well: the pings are answered
		before := pings(t, first)
		testkit.Eventually(t, "it pings", func(context.Context, *redis.Client) (bool, error) { return pings(t, first) > before, nil }, server)
	}
	if len(e.lost) != 0 {
		t.Fatal(<-e.lost)
	}
	server.Pause()
	if err := <-e.lost; !strings.Contains(err.Error(), "does not answer in time") {
		t.Error(err)
	}
	server.Resume()
	<-e.stands
}

// pings counts the PINGs that a server got.
func pings(t *testing.T, raw *redis.Client) string {
	t.Helper()
	stats, err := raw.Info(t.Context(), "commandstats").Result()
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(stats, "cmdstat_ping:calls=")
	n, _, _ := strings.Cut(rest, ",")
	return fmt.Sprintf("%10s", n)
}

// TestSubscriptionWithoutPermission: commands work for a user whose ACL lacks channels, and the subscription tells why
// it does not; once they are granted it stands.
func TestSubscriptionWithoutPermission(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	raw := rawClient(t, server)
	if err := raw.Do(t.Context(), "acl", "setuser", "app", "on", ">"+secret, "~*", "+@all", "resetchannels").Err(); err != nil {
		t.Fatal(err)
	}
	told := &circuit{}
	client := NewClient(Endpoint{URL: "redis://app:" + secret + "@" + server.Addr}, "test", told)
	defer client.Close()
	store := newCountStore(client, 1)
	defer store.close()
	e := listen(t, client, 0)
	err := <-e.lost
	for _, part := range []string{"the app's user in Redis lacks a permission", "&*", "channels"} {
		if !strings.Contains(err.Error(), part) || !strings.Contains(client.Subscription().Error(), part) {
			t.Errorf("%q is not in %q", part, err)
		}
	}
	if err := store.ping(t.Context()); err != nil {
		t.Errorf("commands: %v", err)
	}
	if _, err := store.add(t.Context(), "u"); err != nil {
		t.Errorf("commands: %v", err)
	}
	<-e.lost // it tries again
	if found := mustConnections(t, raw); len(found) > 2 {
		t.Errorf("connections: %+v", found)
	}
	if err := raw.Do(t.Context(), "acl", "setuser", "app", "allchannels").Err(); err != nil {
		t.Fatal(err)
	}
	<-e.stands
	if err := client.Subscription(); err != nil {
		t.Error(err)
	}
	// Only one that stood can be lost.
	if n := told.lost.Load(); n != 0 {
		t.Errorf("%d connections lost", n)
	}
	if err := raw.Do(t.Context(), "client", "kill", "type", "pubsub").Err(); err != nil {
		t.Fatal(err)
	}
	<-e.stands
	if n := told.lost.Load(); n != 1 {
		t.Errorf("%d connections lost, and one was cut", n)
	}
}

// TestRotatingCredentials: with passwords that change all the time no command fails, no event is lost and none is told
// twice, and never more than one further connection stands, while a subscription replaces the one before.
func TestRotatingCredentials(t *testing.T) {
	t.Parallel()
	const rotations = 20
	server := testkit.Start(t)
	raw := rawClient(t, server)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	password := func(n int64) string { return fmt.Sprint(secret, n) }
	var current, asked atomic.Int64
	if err := raw.Do(ctx, "acl", "setuser", "app", "on", ">"+password(0), "~*", "&*", "+@all").Err(); err != nil {
		t.Fatal(err)
	}
	client := NewClient(Endpoint{URL: "redis://" + server.Addr, Life: 40 * time.Millisecond, Credentials: func(context.Context) (string, string, error) {
		asked.Add(1)
		return "app", password(current.Load()), nil
	}}, "test", nil)
	defer client.Close()
	store := newCountStore(client, 1)
	defer store.close()
	e := listen(t, client, 1)

	var running sync.WaitGroup
	over := make(chan struct{})
	during := func(do func(n int) error) {
		running.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				default:
				}
				if err := do(n); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	beats, published := 0, 0
	during(func(n int) error {
		beats++
		_, err := store.add(ctx, fmt.Sprint(n%10))
		return err
	})
	during(func(n int) error {
		published++
		return raw.Publish(ctx, "__keyevent@0__:expired", fmt.Sprint(n)).Err()
	})
	during(func(n int) error { // a password is good until the one after the next
		time.Sleep(20 * time.Millisecond)
		next := int64(n) + 1
		if err := raw.Do(ctx, "acl", "setuser", "app", ">"+password(next)).Err(); err != nil {
			return err
		}
		current.Store(next)
		if next < 5 {
			return nil
		}
		return raw.Do(ctx, "acl", "setuser", "app", "<"+password(next-5)).Err()
	})
	most := 0
	during(func(int) error {
		found, err := connectionsOf(ctx, raw)
		most = max(most, len(found))
		return err
	})
	for range rotations {
		<-e.stands
	}
	close(over)
	running.Wait()
	if err := raw.Publish(ctx, "__keyevent@0__:expired", "the end").Err(); err != nil {
		t.Fatal(err)
	}
	e.hears(t, server, "expired the end")
	missed, twice := 0, 0
	for n := range published {
		switch e.times("expired " + fmt.Sprint(n)) {
		case 0:
			missed++
		case 1:
		default:
			twice++
		}
	}
	if missed > 0 || twice > 0 {
		t.Errorf("of %d events %d were lost and %d told twice", published, missed, twice)
	}
	if len(e.lost) != 0 {
		t.Errorf("the subscription was lost: %v", <-e.lost)
	}
	if most > 3 {
		t.Errorf("up to %d connections", most)
	}
	if asked.Load() < rotations {
		t.Errorf("credentials were asked for %d times", asked.Load())
	}
	t.Logf("%d rotations, %d connections, %d beats, %d events, at most %d connections at once", rotations, asked.Load(), beats, published, most)
}

// TestCredentialsFail: the subscription goes on with what it has while no new credentials can be had, and the reason is
// told where they are needed.
func TestCredentialsFail(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	raw := rawClient(t, server)
	if err := raw.Do(t.Context(), "acl", "setuser", "app", "on", ">"+secret, "~*", "&*", "+@all").Err(); err != nil {
		t.Fatal(err)
	}
	none := errors.New("no token: the identity is not assigned")
	var fail atomic.Bool
	asked := make(chan struct{}, 1000)
	client := NewClient(Endpoint{URL: "redis://" + server.Addr, Life: 10 * time.Millisecond, Credentials: func(context.Context) (string, string, error) {
		asked <- struct{}{}
		if fail.Load() {
			return "", "", none
		}
		return "app", secret, nil
	}}, "test", nil)
	defer client.Close()
	store := newCountStore(client, 1)
	defer store.close()
	e := listen(t, client, 1)
	fail.Store(true)
	for range len(asked) + 2 { // so that the subscription was refused too
		<-asked
	}
	if err := raw.Publish(t.Context(), "__keyevent@0__:expired", "k").Err(); err != nil {
		t.Fatal(err)
	}
	e.hears(t, server, "expired k")
	if err := store.ping(t.Context()); !errors.Is(err, none) || fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a command without credentials: %v", err)
	}
	fail.Store(false)
	if err := store.ping(t.Context()); err != nil {
		t.Error(err)
	}
	if len(e.lost) != 0 {
		t.Errorf("the subscription was lost: %v", <-e.lost)
	}
}

func TestEnsureNotifications(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	raw := rawClient(t, server)
	client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
	defer client.Close()
	for before, after := range map[string]string{"": "xE", "Ex": "xE", "KEA": "AKE", "K$": "$xKE", "Kx": "xKE"} {
		if err := raw.ConfigSet(t.Context(), "notify-keyspace-events", before).Err(); err != nil {
			t.Fatal(err)
		}
		state, err := client.EnsureNotifications(t.Context())
		if got := raw.ConfigGet(t.Context(), "notify-keyspace-events").Val()["notify-keyspace-events"]; state != NotificationsOn || err != nil || got != after {
			t.Errorf("%q: %s, %v, now %q, want %q", before, state, err, got, after)
		}
	}
	for name, c := range map[string]struct {
		denied []any
		want   Notifications
	}{
		"may not read": {[]any{"-config|get"}, NotificationsUnknown},
		"may not set":  {[]any{"-config|set"}, NotificationsOff},
	} {
		if err := raw.ConfigSet(t.Context(), "notify-keyspace-events", "").Err(); err != nil {
			t.Fatal(err)
		}
		if err := raw.Do(t.Context(), append([]any{"acl", "setuser", "app", "reset", "on", ">" + secret, "~*", "&*", "+@all"}, c.denied...)...).Err(); err != nil {
			t.Fatal(err)
		}
		client := NewClient(Endpoint{URL: "redis://app:" + secret + "@" + server.Addr}, "test", nil)
		defer client.Close()
		if state, err := client.EnsureNotifications(t.Context()); state != c.want || !redis.HasErrorPrefix(err, "NOPERM") {
			t.Errorf("%s: %s, %v", name, state, err)
		}
	}
}
