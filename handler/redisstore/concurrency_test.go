package redisstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
)

// TestConcurrentBeatsLeavesSweepsAndRelays lets several processes work on the same few users at once, in real
// time: whatever the order, each start has one end, epochs rise, and every event comes out of the outbox.
func TestConcurrentBeatsLeavesSweepsAndRelays(t *testing.T) {
	t.Parallel()
	const (
		processes = 2
		clients   = 4 // of each process
	)
	b := setup(t)
	rounds, partitions := 250, 3
	if b.store.Partitions() > 1 {
		rounds, partitions = 100, b.store.Partitions()
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	users := []string{"ann", "bob", "cid", "dan", "eve"}
	b.store = b.newStore(partitions)
	all := b.partitions()

	var starts, ends atomic.Int64 // as the callers were told
	var heard collector
	var beating, sweeping, relaying errgroup.Group
	beatsOver, sweepsOver := make(chan struct{}), make(chan struct{})
	for p := range processes {
		store := b.newStore(partitions)
		for c := range clients {
			beating.Go(func() error {
				return beatAndLeave(ctx, store, rand.New(rand.NewPCG(uint64(p), uint64(c))), users, rounds, &starts, &ends)
			})
		}
		sweeping.Go(func() error {
			return testkit.Until(beatsOver, func() error {
				due, err := store.Due(ctx, all)
				if err != nil {
					return err
				}
				claims, err := store.Claim(ctx, due)
				ends.Add(int64(len(claims.Late)))
				if claims.Quarantined > 0 {
					err = fmt.Errorf("%d deadlines in quarantine", claims.Quarantined)
				}
				return err
			})
		})
		relaying.Go(func() error {
			rng := rand.New(rand.NewPCG(uint64(p), 99))
			return testkit.Until(sweepsOver, func() error { return heard.relay(ctx, store.Outbox("relay"+strconv.Itoa(p)), all, rng) })
		})
	}
	wait := func(what string, g *errgroup.Group) {
		if err := g.Wait(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	wait("beats and leaves", &beating)
	// Everything that is still live runs out, and the sweeps and relays come to their ends.
	for _, p := range all {
		if err := b.raw.HSet(ctx, b.store.keys.in(p, "meta"), "offset", 3_600_000).Err(); err != nil {
			t.Error(err)
		}
	}
	close(beatsOver)
	wait("sweeps", &sweeping)
	close(sweepsOver)
	wait("relays", &relaying)
	if t.Failed() {
		return
	}

	events := 0
	startEvents, endEvents := 0, 0
	for _, p := range all {
		l := newLedger()
		for _, e := range heard.sorted(p) {
			if err := l.take(e); err != nil {
				t.Fatalf("partition %d: %v", p, err)
			}
		}
		written, err := b.raw.HGet(ctx, b.store.keys.in(p, "meta"), "n").Int64()
		if err != nil && !errors.Is(err, redis.Nil) || written != l.n {
			t.Errorf("partition %d: %d events came out of the outbox, %d were written (%v)", p, l.n, written, err)
		}
		if left := b.raw.XLen(ctx, b.store.keys.outbox(p)).Val(); left != 0 {
			t.Errorf("partition %d: %d entries are left in the outbox", p, left)
		}
		for user, u := range l.users {
			if len(u.sessions) > 0 {
				t.Errorf("user %s: sessions %v never ended", user, u.sessions)
			}
		}
		events += int(l.n)
		startEvents += l.starts
		endEvents += l.ends
	}
	if startEvents != int(starts.Load()) || endEvents != int(ends.Load()) || startEvents != endEvents || startEvents < rounds {
		t.Errorf("%d starts and %d ends in the outbox, %d and %d in the answers", startEvents, endEvents, starts.Load(), ends.Load())
	}
	known, err := b.store.Users(ctx, users)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range known {
		if u == nil || u.Status != presence.Offline || len(u.Sessions) != 0 {
			t.Errorf("at the end: %+v", u)
		}
	}
	t.Logf("%d events, %d starts, %d ends", events, startEvents, endEvents)
}

// beatAndLeave makes rounds calls with beats and leaves of random sessions. Many beats are so old that they
// hold their session for a few milliseconds only.
func beatAndLeave(ctx context.Context, store *Store, rng *rand.Rand, users []string, rounds int, starts, ends *atomic.Int64) error {
	sessions := []string{presence.DefaultSession, "a", "b"}
	for range rounds {
		if rng.IntN(4) == 0 {
			leaves := make([]presence.Leave, 1+rng.IntN(3))
			for i := range leaves {
				leaves[i] = presence.Leave{User: pick(rng, users...), Session: pick(rng, sessions...), At: time.Now()}
			}
			outcomes, err := store.Leaves(ctx, leaves)
			if err != nil {
				return err
			}
			for _, o := range outcomes {
				if o == presence.Left {
					ends.Add(1)
				}
			}
			continue
		}
		beats := make([]presence.Beat, 1+rng.IntN(6))
		for i := range beats {
			age := time.Duration(rng.IntN(2)) * time.Duration(990+rng.IntN(10)) * time.Millisecond
			beats[i] = presence.Beat{
				User: pick(rng, users...), Session: pick(rng, sessions...), TTL: seconds(1),
				Grace: *seconds(rng.IntN(2)), At: time.Now().Add(-age),
			}
		}
		outcomes, err := store.Heartbeats(ctx, beats)
		if err != nil {
			return err
		}
		for i, o := range outcomes {
			switch o.Change {
			case presence.ChangeOnline, presence.ChangeStarted:
				starts.Add(1)
			case presence.ChangeRenewed, presence.ChangeStale:
			default:
				return fmt.Errorf("beat %+v: %+v", beats[i], o)
			}
		}
	}
	return nil
}

// collector keeps what relays read: each event once, however often it is read.
type collector struct {
	mu     sync.Mutex
	events map[int]map[int64]Entry // by partition and number
}

// relay reads the partitions' outboxes to their ends, sometimes what another relay holds, and acknowledges.
func (c *collector) relay(ctx context.Context, o *Outbox, partitions []int, rng *rand.Rand) error {
	for _, p := range partitions {
		for {
			entries, err := o.Next(ctx, p, 20)
			if err == nil && rng.IntN(3) == 0 {
				var taken []Entry
				taken, _, err = o.TakeOver(ctx, p, 0, nil, "", 20)
				entries = append(entries, taken...)
			}
			if err != nil {
				return err
			}
			if len(entries) == 0 {
				break
			}
			if err := c.add(p, entries); err != nil {
				return err
			}
			if err := o.Acknowledge(ctx, p, entries); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *collector) add(p int, entries []Entry) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.events == nil {
		c.events = map[int]map[int64]Entry{}
	}
	if c.events[p] == nil {
		c.events[p] = map[int64]Entry{}
	}
	for _, e := range entries {
		if before, ok := c.events[p][e.N]; ok && (before.Event.ID != e.Event.ID || before.StreamID != e.StreamID) {
			return errors.New("two events have the number " + strconv.FormatInt(e.N, 10))
		}
		c.events[p][e.N] = e
	}
	return nil
}

// sorted returns the events of a partition in the order of the outbox.
func (c *collector) sorted(p int) []Entry {
	var all []Entry
	for _, e := range c.events[p] {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b Entry) int { return int(a.N - b.N) })
	return all
}
