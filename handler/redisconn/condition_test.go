package redisconn

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"userconnectivity/handler/internal/testkit"
)

// syncBuffer is a log that several goroutines write.
type syncBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// TestMemory: memory against its limit is seen, and a server that evicts, with one line in the log.
func TestMemory(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args   []string
		evicts bool
	}{
		"as it should be":    {[]string{"--maxmemory", "100mb"}, false},
		"evicts the oldest":  {[]string{"--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"}, true},
		"evicts the expired": {[]string{"--maxmemory-policy", "volatile-ttl"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := testkit.Start(t, c.args...)
			var out syncBuffer
			client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
			defer client.Close()
			client.Log = slog.New(slog.NewTextHandler(&out, nil))
			for range 3 {
				all, err := client.Memory(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if m := all[""]; m.Used == 0 || (m.Limit != 100<<20) == (c.args[0] == "--maxmemory") || m.Evicts != c.evicts || len(m.Warnings()) > 0 != c.evicts || all.Worst() != m {
					t.Errorf("%+v", m)
				}
			}
			want := 0
			if c.evicts {
				want = 1
			}
			if n := strings.Count(out.String(), "redis evicts keys"); n != want {
				t.Errorf("%d lines in the log, want %d: %s", n, want, out.String())
			}
		})
	}
}

// TestMemoryOfACluster is that of the primary with the largest share of its limit in use, or of one that evicts.
func TestMemoryOfACluster(t *testing.T) {
	t.Parallel()
	small, large := Memory{Used: 70, Limit: 100, Policy: "noeviction", Evicted: 1}, Memory{Used: 90, Limit: 100, Policy: "noeviction", Evicted: 2}
	evicts := Memory{Used: 10, Limit: 100, Policy: "allkeys-lru", Evicted: 3, Evicts: true}
	full, unlimited := Memory{Used: 91, Limit: 100}, Memory{Used: 91}
	for name, c := range map[string]struct {
		all      Memories
		worst    Memory
		evicted  int64
		warnings []string
	}{
		"nothing known":      {nil, Memory{}, 0, nil},
		"the largest share":  {Memories{"a": small, "b": large, "c": small}, large, 4, nil},
		"one that evicts":    {Memories{"a": large, "b": evicts, "c": small}, evicts, 6, []string{"maxmemory-policy is allkeys-lru"}},
		"nearly full":        {Memories{"a": small, "b": full}, full, 1, []string{"redis uses 91 % of the memory"}},
		"without a limit":    {Memories{"": unlimited}, unlimited, 0, nil},
		"evicts and is full": {Memories{"": {Used: 99, Limit: 100, Evicts: true}}, Memory{Used: 99, Limit: 100, Evicts: true}, 0, []string{"maxmemory-policy", "redis uses 99 %"}},
	} {
		got := c.all.Worst()
		c.worst.Evicted = c.evicted
		if got != c.worst {
			t.Errorf("%s: %+v, want %+v", name, got, c.worst)
		}
		warnings := got.Warnings()
		if len(warnings) != len(c.warnings) {
			t.Errorf("%s: %q", name, warnings)
			continue
		}
		for i, want := range c.warnings {
			if !strings.Contains(warnings[i], want) {
				t.Errorf("%s: %q", name, warnings)
			}
		}
	}
}

// TestOnePrimaryRefusesWrites: of a cluster the others are written to all the same.
func TestOnePrimaryRefusesWrites(t *testing.T) {
	t.Parallel()
	cluster := testkit.StartCluster(t, 3, 0)
	client := NewClient(endpointOf(cluster), "test", nil)
	defer client.Close()
	store := newCountStore(client, 16)
	defer store.close()
	var keys []string
	for _, name := range store.names() {
		keys = append(keys, store.key(name))
	}
	for n, primary := range cluster.Primaries {
		if all, err := client.CheckWrites(t.Context(), keys); all || (err != nil) != (n > 0) {
			t.Errorf("%d of 3 are full: all %v, %v", n, all, err)
		}
		raw := primary.Client()
		t.Cleanup(func() { _ = raw.Close() })
		if err := raw.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := client.CheckWrites(t.Context(), keys); !all || Code(err) != "OOM" {
		t.Errorf("all are full: all %v, %v", all, err)
	}
}

// TestASettingIsNotChangedSilently: that a setting of the server was changed is in the log, with what it was, and it
// is not where that is not allowed.
func TestASettingIsNotChangedSilently(t *testing.T) {
	t.Parallel()
	for _, keep := range []bool{false, true} {
		server := testkit.Start(t, "--notify-keyspace-events", "Kg")
		var out syncBuffer
		client := NewClient(Endpoint{URL: server.URL()}, "test", nil)
		defer client.Close()
		client.Log, client.KeepSettings = slog.New(slog.NewTextHandler(&out, nil)), keep
		for range 2 {
			state, err := client.EnsureNotifications(t.Context())
			if (state == NotificationsOn) == keep || (err == nil) == keep {
				t.Errorf("keep %v: %s, %v", keep, state, err)
			}
		}
		lines := strings.Count(out.String(), "a setting of the Redis server was changed")
		got, err := rawClient(t, server).ConfigGet(t.Context(), "notify-keyspace-events").Result()
		if err != nil {
			t.Fatal(err)
		}
		switch changed := strings.Contains(got["notify-keyspace-events"], "E"); {
		case keep && (changed || lines != 0), !keep && (!changed || lines != 1):
			t.Errorf("keep %v: the setting is %q, and in the log is %q", keep, got["notify-keyspace-events"], out.String())
		}
	}
}
