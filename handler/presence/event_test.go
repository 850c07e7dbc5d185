package presence_test

import (
	"strings"
	"testing"

	"userconnectivity/handler/presence"
)

// TestEventIDVectors: the id is part of the contract between versions. The values were made by another program.
func TestEventIDVectors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		user, session string
		kind          presence.EventType
		basis         int64
		id, trace     string
	}{
		{"alice", "default", presence.UserOnline, 1767225600123, "FPMANSL7BYAK6-D6SA3DI6JZAJFN6Z", "00-07fbfd8989ec09bdca22551a99d543cf-33679ce1f346651e-01"},
		{"alice", "default", presence.UserOffline, 1767225600123, "FPMANSL7BYAK6-W2GBIYXDLQH3DS6W", "00-45ee65a501afd4ca1cbcc18bee38442b-7332c9d2d94cf235-01"},
		{"alice", "laptop", presence.SessionStarted, 1, "FPMANSL7BYAK6-WYKQQNHOJPQCU6RW", "00-05c042f42d9f2f8707bb05c6c00b979b-1d94af7d1b8c6f5d-01"},
		{"a:b@c", "x|y+z=1~2", presence.SessionEnded, 9007199254740991, "YDGWIFP2XURES-2JPUFB5PQGC3AVHO", "00-8bf762d29688e119300b49b1898fe975-4d4d134c5bd430dc-01"},
	} {
		id := presence.EventID(tt.user, tt.session, tt.kind, tt.basis)
		if id != tt.id {
			t.Errorf("%+v: id %s", tt, id)
		}
		if got := presence.TraceparentOf(id); got != tt.trace {
			t.Errorf("%s: traceparent %s, want %s", id, got, tt.trace)
		}
		if pk, ok := presence.PartitionKeyOf(id); !ok || pk != presence.PartitionKey(tt.user) || pk != tt.id[:13] {
			t.Errorf("%s: partition key %s, %v", id, pk, ok)
		}
	}
}

// TestKeyEventIDVectors: the same contract for foreign keys.
func TestKeyEventIDVectors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		key   string
		at, n int64
		id    string
	}{
		{"cart:7", 1767225600123, 1, "DRHFHQJFKOBQ4-IRJDGED5UOK2SZ2I"},
		{"alice", 1767225600123, 12, "FPMANSL7BYAK6-4W2GGBTFK56KOHKB"},
		{"a\nb\uFFFD", 1, 9007199254740991, "OUR4CR6HZHAPV-XWNFVJKJZD3QIWOC"},
	} {
		id := presence.KeyEventID(tt.key, tt.at, tt.n)
		if pk, ok := presence.PartitionKeyOf(id); id != tt.id || !ok || pk != presence.PartitionKey(tt.key) {
			t.Errorf("%+v: id %s", tt, id)
		}
	}
	if presence.KeyEventID("k", 1, 2) == presence.KeyEventID("k", 1, 3) || presence.KeyEventID("k", 1, 2) == presence.KeyEventID("k", 2, 2) {
		t.Error("two expiries of a key have the same id")
	}
}

// TestEventIDsDiffer: each part of the input makes another event, wherever one part ends and the next begins.
func TestEventIDsDiffer(t *testing.T) {
	t.Parallel()
	seen := map[string]string{}
	for _, user := range []string{"a", "ab", "b"} {
		for _, session := range []string{"a", "ab", "ba"} {
			for _, kind := range []presence.EventType{presence.UserOnline, presence.SessionStarted, presence.SessionEnded, presence.UserOffline} {
				for _, basis := range []int64{0, 1, 11} {
					id := presence.EventID(user, session, kind, basis)
					name := user + "/" + session + "/" + string(kind)
					if other, taken := seen[id]; taken {
						t.Errorf("%s and %s have the id %s", other, name, id)
					}
					seen[id] = name
				}
			}
		}
	}
}

func TestPartitionKeyOf(t *testing.T) {
	t.Parallel()
	good := presence.EventID("a", "b", presence.UserOnline, 1)
	for _, id := range []string{
		"", "-", good + "A", good[1:], strings.ToLower(good), good[:13] + good[14:], good[:13] + "--" + good[15:],
		"0" + good[1:], good[:14] + "1" + good[15:], good + ":r1", " " + good, good[:29] + "=",
	} {
		if pk, ok := presence.PartitionKeyOf(id); ok || pk != "" {
			t.Errorf("%q was taken for an event id, with the partition key %q", id, pk)
		}
	}
}

func TestEventStatus(t *testing.T) {
	t.Parallel()
	for kind, want := range map[presence.EventType]presence.Status{
		presence.UserOnline: presence.Online, presence.SessionStarted: presence.Online,
		presence.SessionEnded: presence.Online, presence.UserOffline: presence.Offline,
	} {
		if got := (presence.Event{Type: kind}).Status(); got != want || !kind.Valid() {
			t.Errorf("after %s a user is %s, want %s", kind, got, want)
		}
	}
	if presence.EventType("user.gone").Valid() || presence.EventType("").Valid() || presence.KeyExpired.Valid() || presence.Reason("why").Valid() || !presence.ReasonLeft.Valid() {
		t.Error("unknown types and reasons must not be valid")
	}
}
