package redisstore

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
)

// parseScript tells what the scripts' parser makes of the records in KEYS from 5: a list of texts each, empty
// when it refuses the record. The first text is epoch, since, last seen and groups; the others are the live
// sessions: name, start, ttl, grace, due and meta.
var parseScript = redis.NewScript(statePrelude + `
local function int(n) return string.format('%.0f', n) end
local all = {}
for i = 5, #KEYS do
  local texts = {}
  local ok, u = pcall(parse, redis.call('GET', KEYS[i]), now)
  if ok and u then
    local seen = last_seen(u)
    texts[1] = table.concat({ int(u.epoch or 0), int(u.since), int(math.max(seen or 0, 0)), u.groups }, '\n')
    for j, s in ipairs(u.live) do
      texts[j + 1] = table.concat({ s.name, int(s.start), int(s.ttl), int(s.grace), int(s.due), s.meta }, '\n')
    end
  end
  all[#all + 1] = texts
end
return all`)

// parsedTexts is what parseScript should tell of a record, by parseRecord.
func parsedTexts(record string) []any {
	u, ok := parseRecord("u", record)
	if !ok {
		return []any{}
	}
	ms := func(t time.Time) int64 {
		if t.IsZero() {
			return 0
		}
		return t.UnixMilli()
	}
	texts := []any{fmt.Sprintf("%d\n%d\n%d\n%s", u.Epoch, ms(u.Since), ms(u.LastSeen), strings.Join(u.Groups, " "))}
	for _, s := range u.Sessions {
		texts = append(texts, fmt.Sprintf("%s\n%d\n%d\n%d\n%d\n%s", s.ID, s.StartEpoch, int64(s.TTL.Seconds()), int64(s.Grace.Seconds()), ms(s.ExpiresAt), s.Meta))
	}
	return texts
}

// TestRecordsReadAlikeInGoAndLua compares the two readers of user records: on records that random beats and
// leaves wrote, which both understand, and on copies with damaged sessions, where both say the same unless one
// refuses.
func TestRecordsReadAlikeInGoAndLua(t *testing.T) {
	t.Parallel()
	b := setup(t)
	ctx := t.Context()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))

	var records []string
	for i := range 60 {
		user := "user" + strconv.Itoa(i)
		for range 1 + rng.IntN(12) {
			session := pick(rng, presence.DefaultSession, "a", "tab:~1=+-|@._", "z")
			age := time.Duration(rng.IntN(3000)) * time.Millisecond
			var seq *int64
			if rng.IntN(2) == 0 {
				seq = new(time.Now().UnixMilli())
			}
			if rng.IntN(4) == 0 {
				b.leave(presence.Leave{User: user, Session: session, Seq: seq, At: time.Now().Add(-age)})
				continue
			}
			b.beat(presence.Beat{
				User: user, Session: session, TTL: seconds(pick(rng, 5, 45, 3600)), Grace: *seconds(pick(rng, 0, 7)), Seq: seq,
				Groups: pick(rng, nil, []string{}, []string{"g1", "g|2~"}), Meta: pick(rng, nil, json.RawMessage("{}"), json.RawMessage(`{"a":[1,"b, c"],"ü":"\n"}`)),
				At: time.Now().Add(-age),
			})
		}
		records = append(records, b.raw.Get(ctx, b.store.keys.user(0, user)).Val())
	}
	written := len(records)
	for range 3000 {
		head, sessions, _ := strings.Cut(records[rng.IntN(written)], "\n")
		if r := head + "\n" + damage(rng, sessions); !unlikely.MatchString(r) {
			records = append(records, r)
		}
	}

	read := b.store.newCall(parseScript, 0, len(records), 0)
	values := make([]any, 0, 2*len(records))
	for i, r := range records {
		key := b.store.keys.user(0, "copy"+strconv.Itoa(i))
		values = append(values, key, r)
		read.Keys = append(read.Keys, key)
	}
	if err := b.raw.MSet(ctx, values...).Err(); err != nil {
		t.Fatal(err)
	}
	if err := b.store.run(ctx, read); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i, got := range read.Cmd.Val().([]any) {
		want := parsedTexts(records[i])
		inGo, inLua := len(want) > 0, len(got.([]any)) > 0
		switch {
		case i < written && !(inGo && inLua):
			t.Errorf("record %q is refused: in Go %v, in Lua %v", records[i], !inGo, !inLua)
		case inGo && inLua && !reflect.DeepEqual(want, got):
			t.Errorf("record %q (-Go +Lua):\n%s", records[i], cmp.Diff(want, got))
		case !inGo && !inLua:
			refused++
		}
	}
	if refused == 0 || refused == len(records)-written {
		t.Errorf("%d of %d damaged records are refused", refused, len(records)-written)
	}
}

// damage changes a record in one place or a few.
func damage(rng *rand.Rand, record string) string {
	r := []byte(record)
	for range 1 + rng.IntN(3) {
		at := rng.IntN(len(r))
		c := "0123456789,,,-+~\n\n .aZ{\x00"[rng.IntN(24)]
		switch rng.IntN(4) {
		case 0:
			r[at] = c
		case 1:
			r = append(r[:at:at], append([]byte{c}, r[at:]...)...)
		case 2:
			r = append(r[:at:at], r[at+1:]...)
		case 3:
			r = append(r[:at+1:at+1], r[rng.IntN(at+1):]...)
		}
		if len(r) == 0 {
			return ","
		}
	}
	return string(r)
}
