package expiry_test

import (
	"fmt"
	"hash/fnv"
	"testing"
	"time"

	"userconnectivity/handler/presence"
)

// usersIn returns users of one partition.
func usersIn(partition, n int, name string) []string {
	var users []string
	for i := 0; len(users) < n; i++ {
		h := fnv.New32a()
		_, _ = fmt.Fprint(h, name, i)
		if int(h.Sum32()%partitions) == partition {
			users = append(users, fmt.Sprint(name, i))
		}
	}
	return users
}

// TestBacklogOfOnePartition: while very many sessions of one partition are claimed, as after an outage of its primary, a
// session of another partition that becomes due is claimed in between.
func TestBacklogOfOnePartition(t *testing.T) {
	t.Parallel()
	b := setup(t)
	backlog := usersIn(0, 8_000, "backlog")
	ttl := presence.MinTTL
	for i := 0; i < len(backlog); i += presence.MaxBatch {
		beats := make([]presence.Beat, presence.MaxBatch)
		for k := range beats {
			beats[k] = presence.Beat{User: backlog[i+k], Session: presence.DefaultSession, TTL: &ttl, At: time.Now()}
		}
		if _, err := b.store.Heartbeats(t.Context(), beats); err != nil {
			t.Fatal(err)
		}
	}
	b.pass(ttl) // all of them are due
	other := usersIn(1, 1, "other")
	// It becomes due soon after the listener has begun.
	beat := presence.Beat{User: other[0], Session: presence.DefaultSession, TTL: &ttl, At: time.Now().Add(100*time.Millisecond - ttl)}
	if _, err := b.store.Heartbeats(t.Context(), []presence.Beat{beat}); err != nil {
		t.Fatal(err)
	}
	l, _ := b.listen("one")
	b.until("all are claimed", func() bool { return l.State().Claimed == int64(len(backlog))+1 })
	since := func(users []string) (last time.Time) {
		known, err := b.store.Users(t.Context(), users)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range known {
			if u.Since.After(last) {
				last = u.Since
			}
		}
		return last
	}
	var end time.Time
	for i := 0; i < len(backlog); i += presence.MaxBatch {
		if last := since(backlog[i : i+presence.MaxBatch]); last.After(end) {
			end = last
		}
	}
	claimed := since(other)
	t.Logf("claimed %v before the end of the backlog", end.Sub(claimed))
	if !claimed.Before(end) {
		t.Error("the session of the other partition waited for the whole backlog")
	}
}
