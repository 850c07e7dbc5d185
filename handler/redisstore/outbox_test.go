package redisstore

import (
	"context"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
)

// TestJunkInTheOutbox: what somebody else wrote goes to the quarantine, and does not hide what comes after it, however
// little is read at once.
func TestJunkInTheOutbox(t *testing.T) {
	t.Parallel()
	entry := func(user, session string) string {
		return strings.Join([]string{"1", "user.online", user, session, "5", "beat", "5", "", "5", "5", "life", "0", "1", "", "", "", ""}, "\n")
	}
	junk := []string{
		"", "junk", "2\njunk", entry("\xff", "s"), entry(strings.Repeat("u", 129), "s"), entry("u", ""), entry("u", ".."),
		strings.Replace(entry("u", "s"), "user.online", "user.away", 1),
	}
	for _, again := range []bool{false, true} {
		b := setup(t)
		p, ctx := b.store.keys.partition("good"), t.Context()
		stream := b.store.keys.outbox(p)
		for _, text := range junk {
			if err := b.raw.XAdd(ctx, &redis.XAddArgs{Stream: stream, Values: []any{"e", text}}).Err(); err != nil {
				t.Fatal(err)
			}
		}
		b.beat(presence.Beat{User: "good"})
		outbox := b.store.Outbox("one")
		read := outbox.Next
		if again { // the relay was given all of them before
			if err := b.raw.XGroupCreate(ctx, stream, relayGroup, "0").Err(); err != nil {
				t.Fatal(err)
			}
			args := &redis.XReadGroupArgs{Group: relayGroup, Consumer: "one", Streams: []string{stream, ">"}}
			if err := b.raw.XReadGroup(ctx, args).Err(); err != nil {
				t.Fatal(err)
			}
			read = func(ctx context.Context, p, limit int) ([]Entry, error) { return outbox.Own(ctx, p, "", limit) }
		}
		entries, err := read(ctx, p, 1)
		if err != nil || len(entries) != 1 || entries[0].Event.User != "good" {
			t.Fatalf("%+v, %v", entries, err)
		}
		if n := b.raw.XLen(ctx, stream).Val(); n != 1 {
			t.Errorf("%d entries are left", n)
		}
		if n := b.raw.XLen(ctx, b.store.keys.in(p, "quarantine")).Val(); n != int64(len(junk)) {
			t.Errorf("%d notes of %d pieces of junk", n, len(junk))
		}
	}
}
