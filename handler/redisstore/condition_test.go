package redisstore

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

// TestMemoryState: memory against its limit is seen, and a server that evicts, with one line in the log.
func TestMemoryState(t *testing.T) {
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
				m, err := client.MemoryState(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if m.Used == 0 || (m.Limit != 100<<20) == (c.args[0] == "--maxmemory") || m.Evicts != c.evicts || (m.Eviction() == "") == c.evicts {
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
