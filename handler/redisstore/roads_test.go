package redisstore

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
)

// TestRecordTextsCallNothing: record.lua turns text into tables and back, so that every script can have it in front.
func TestRecordTextsCallNothing(t *testing.T) {
	t.Parallel()
	if found := regexp.MustCompile(`redis\.|KEYS|ARGV`).FindString(recordLua); found != "" {
		t.Errorf("record.lua has %s", found)
	}
}

// TestRenewalsAgreeWithHeartbeats compares renew.lua with heartbeat.lua on random records and beats: renew.lua writes
// and answers what heartbeat.lua does, or it leaves everything as it was.
func TestRenewalsAgreeWithHeartbeats(t *testing.T) {
	t.Parallel()
	quick := setup(t)
	full := &bench{t: t, raw: quick.raw, endpoint: quick.endpoint, prefix: quick.prefix + "full"}
	full.store = New(quick.store.client, Config{Prefix: full.prefix, Partitions: 1, LeaseKeys: true})
	t.Cleanup(full.store.Close)
	ctx := t.Context()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	now := time.Now().UnixMilli()

	type state struct {
		Record string
		Due    float64
		Lease  bool
	}
	benches := []*bench{quick, full}
	const count = 400
	items := make([][]*beatItem, 2)
	for _, b := range benches {
		b.beat(presence.Beat{User: "first"}) // there is a life
	}
	look := func(b *bench, it *beatItem) state {
		member := it.beat.User + "/" + it.beat.Session
		return state{
			b.raw.Get(ctx, b.store.keys.user(0, it.beat.User)).Val(),
			b.raw.ZScore(ctx, b.store.keys.in(0, "due"), member).Val(),
			b.raw.Exists(ctx, b.store.keys.lease(0, it.beat.User, it.beat.Session)).Val() == 1,
		}
	}
	for i := range count {
		user, record := "user"+strconv.Itoa(i), randomRecord(rng, now)
		beat := presence.Beat{
			User: user, Session: pick(rng, presence.DefaultSession, presence.DefaultSession, "tab"),
			TTL: seconds(pick(rng, 45, 45, 600)), Grace: *seconds(pick(rng, 0, 0, 7)),
			Enqueued: time.UnixMilli(now - rng.Int64N(8000)), // unlike At it means the same instant in both calls
		}
		if rng.IntN(3) == 0 {
			beat.Seq = new(rng.Int64N(9))
		}
		for n, b := range benches {
			b.raw.Set(ctx, b.store.keys.user(0, user), record, 0)
			b.raw.ZAdd(ctx, b.store.keys.in(0, "due"), redis.Z{Score: float64(now), Member: user + "/" + beat.Session})
			it := &beatItem{beat: beat}
			it.prepare(b.store)
			items[n] = append(items[n], it)
		}
	}
	before := make([]state, count)
	for i, it := range items[0] {
		before[i] = look(quick, it)
	}
	events := quick.raw.XLen(ctx, quick.store.keys.outbox(0)).Val()
	if failed := quick.store.renew(ctx, items[0]); len(failed) > 0 {
		t.Fatal(failed)
	}
	full.store.beat(ctx, items[1])
	if got := quick.raw.XLen(ctx, quick.store.keys.outbox(0)).Val(); got != events {
		t.Errorf("renew.lua wrote %d events", got-events)
	}
	renewed := 0
	for i, it := range items[0] {
		want, outcome := before[i], presence.BeatOutcome{}
		if it.renewed {
			renewed++
			want, outcome = look(full, items[1][i]), items[1][i].outcome
		}
		if err := items[1][i].Err; err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, look(quick, it)) + cmp.Diff(outcome, it.outcome); diff != "" {
			t.Errorf("%q, beat %+v, renewed %v (-heartbeat.lua +renew.lua):\n%s", before[i].Record, it.beat, it.renewed, diff)
		}
	}
	if renewed == 0 || renewed == count {
		t.Errorf("renew.lua did %d of %d beats", renewed, count)
	}
}

// randomRecord returns a record of any form that this version or a later one writes.
func randomRecord(rng *rand.Rand, now int64) string {
	epoch := now - 20000 - rng.Int64N(10000)
	record := pick(rng, fmt.Sprintf("a%d", epoch), fmt.Sprintf("a%d,5,%d,g h", epoch, epoch), fmt.Sprintf("a%d,,,,later", epoch))
	for _, name := range [][]string{{""}, {""}, {"tab"}, {"", "tab"}, {}}[rng.IntN(5)] {
		last := strconv.FormatInt(rng.Int64N(20000), 10)
		kind := pick(rng, "+", "+", "+", "~")
		if name == "" && rng.IntN(2) == 0 {
			record += "\n" + kind + last + pick(rng, "", ",600")
			continue
		}
		record += "\n" + kind + last + "," + pick(rng, "", "600") + "," + name + "," + pick(rng, "", "9") + "," + pick(rng, "", "7") + "," +
			pick(rng, "", "", "50000") + "," + pick(rng, "", "4") + "," + pick(rng, "", `{"a":"},"}`, `{"a":1},later`)
	}
	return record + pick(rng, "", "", "\n-old,100,3,2", "\n-old,100,3,2,later", "\n*later line")
}
