package deferral

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"userconnectivity/handler/presence"
)

// ticket numbers the items of all tests.
var ticket atomic.Uint64

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// items reads a list like "b1 l2 b3:g:m B4:s7": beats (b) and leaves (l) of session a, or of session B and L, at
// a second after noon, with groups (g, G clears), meta (m, M clears), a seq (s7), a ttl (t5) and a grace (r9).
func items(t *testing.T, list string) []item {
	t.Helper()
	var all []item
	for _, word := range strings.Fields(list) {
		parts := strings.Split(word, ":")
		number := func(text string) int64 {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		session := "a"
		if parts[0][0] < 'a' {
			session = "b"
		}
		second := number(parts[0][1:])
		it := item{
			ticket: ticket.Add(1), leave: strings.EqualFold(parts[0][:1], "l"),
			beat: presence.Beat{User: "u", Session: session, At: noon.Add(time.Duration(second) * time.Second)},
		}
		for _, p := range parts[1:] {
			switch p[0] {
			case 'g':
				it.beat.Groups = []string{p}
			case 'G':
				it.beat.Groups = []string{}
			case 'm':
				it.beat.Meta = json.RawMessage(`{"` + p + `":1}`)
			case 'M':
				it.beat.Meta = json.RawMessage(`{}`)
			case 's':
				it.beat.Seq = new(number(p[1:]))
			case 't':
				it.beat.TTL = new(time.Duration(number(p[1:])) * time.Second)
			case 'r':
				it.beat.Grace = time.Duration(number(p[1:])) * time.Second
			}
		}
		all = append(all, it)
	}
	return all
}

// show writes items as items reads them.
func show(all []item) string {
	var words []string
	for _, it := range all {
		word := map[bool]string{true: "l", false: "b"}[it.leave]
		if it.beat.Session == "b" {
			word = strings.ToUpper(word)
		}
		word += fmt.Sprint(int(it.beat.At.Sub(noon).Seconds()))
		switch {
		case it.beat.Groups == nil:
		case len(it.beat.Groups) == 0:
			word += ":G"
		default:
			word += ":" + it.beat.Groups[0]
		}
		switch m := string(it.beat.Meta); {
		case m == "":
		case m == "{}":
			word += ":M"
		default:
			word += ":" + strings.Split(m, `"`)[1]
		}
		if it.beat.Seq != nil {
			word += fmt.Sprint(":s", *it.beat.Seq)
		}
		if it.beat.TTL != nil {
			word += fmt.Sprint(":t", int(it.beat.TTL.Seconds()))
		}
		if it.beat.Grace > 0 {
			word += fmt.Sprint(":r", int(it.beat.Grace.Seconds()))
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// kept adds items to a room and returns what waits of user u.
func kept(t *testing.T, r *room, list string) []item {
	t.Helper()
	for _, it := range items(t, list) {
		if !r.add(it) {
			t.Fatalf("no room for %s of %q", show([]item{it}), list)
		}
	}
	return r.users["u"].items
}

func TestWhatALaterItemReplaces(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, add, want string }{
		{"a beat replaces a beat", "b1 b2 b3", "b3"},
		{"with everything it sets", "b1:g1:m1 b2:g2:m2", "b2:g2:m2"},
		{"what it omits stays", "b1:g1:m1 b2", "b1:g1:m1 b2"},
		{"once", "b1:g1:m1 b2 b3 b4", "b1:g1:m1 b4"},
		{"until it is set again", "b1:g1:m1 b2 b3:m2 b4:g2 b5", "b3:m2 b4:g2 b5"},
		{"in any order", "b1:m1 b2:g1 b3:m2 b4:g2 b5:m3 b6:g3 b7", "b5:m3 b6:g3 b7"},
		{"clearing is setting", "b1:g1:m1 b2:G:M b3", "b2:G:M b3"},
		{"a leave after a beat ends it", "b1 l2", "b1 l2"},
		{"after the beat that counts", "b1 b2:r5 l3", "b2:r5 l3"},
		{"a beat after a leave starts again, without meta", "l1 b2", "l1 b2"},
		{"or with its own", "l1 b2:m1", "b2:m1"},
		{"which makes all before needless", "b1:m1 l2 b3 l4 b5:m2", "b5:m2"},
		{"but for the groups", "b1:g1:m1 l2 b3 l4 b5:m2", "b1:g1:m1 b5:m2"},
		{"and the beats before a leave replace each other", "b1 l2 b3 b4 l5 b6 b7", "b1 l2 b4 l5 b7"},
		{"a leave replaces no leave: the first decides the deadline", "l1 l2", "l1 l2"},
		{"a rising seq", "b1:s1 b2:s2 b3:s3", "b3:s3"},
		{"a seq that does not rise: either may be stale", "b1:s2 b2:s2", "b1:s2 b2:s2"},
		{"a seq that falls", "b1:s2 b2:s1 b3:s3", "b3:s3"},
		{"a seq on one of them only", "b1:s1 b2", "b1:s1 b2"},
		{"a seq on the other only", "b1 b2:s1", "b1 b2:s1"},
		{"a seq of leaves counts too", "b1:s1 l2:s2 b3:m1:s3", "b3:m1:s3"},
		{"an older instant comes later", "b2 b1", "b2 b1"},
		{"both are replaced by a newer one", "b2 b1 b3", "b3"},
		{"the older one's groups may count", "b2 b1:g1 b3", "b2 b1:g1 b3"},
		{"the same instant", "b1 b1", "b1"},
		{"sessions are apart", "b1 B2 b3 B4", "b3 B4"},
		{"the order of groups between sessions stays", "b1:g1 B2:g2 b3", "b1:g1 B2:g2 b3"},
		{"the last groups stay last", "b1:g1 B2:g2 b3:g3", "B2:g2 b3:g3"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRoom(10, 1<<20)
			if got := show(kept(t, r, tt.add)); got != tt.want {
				t.Errorf("%s: %s waits, want %s", tt.add, got, tt.want)
			}
			r.written(takeAll(t, r), nil)
			if r.items != 0 || r.sessions != 0 || r.bytes != 0 || len(r.users) != 0 || r.order.Len() != 0 {
				t.Errorf("something is left: %+v", r)
			}
		})
	}
}

// takeAll marks all items of a room as being written, whatever they are.
func takeAll(t *testing.T, r *room) chunk {
	t.Helper()
	var c chunk
	for _, q := range r.users {
		q.sending = len(q.items)
		c.queues = append(c.queues, q)
	}
	return c
}

func TestWhatIsBeingWrittenStays(t *testing.T) {
	t.Parallel()
	r := newRoom(10, 1<<20)
	kept(t, r, "b1")
	c := r.take(false, 10, nil)
	if got := show(kept(t, r, "b2 b3")); got != "b1 b3" {
		t.Fatalf("%s waits", got)
	}
	r.failed(c)
	if got := show(r.users["u"].items); got != "b1 b3" {
		t.Fatalf("%s waits after a failure", got)
	}
	if got := show(kept(t, r, "b4")); got != "b4" {
		t.Fatalf("%s waits", got)
	}
	if r.items != 1 || r.sessions != 1 {
		t.Errorf("%d items, %d sessions", r.items, r.sessions)
	}
}

// A call that began earlier and failed later goes before those that began later.
func TestOrderOfTickets(t *testing.T) {
	t.Parallel()
	r := newRoom(10, 1<<20)
	all := items(t, "b1:g1 b2 l3 b4")
	for _, i := range []int{2, 0, 3, 1} {
		r.add(all[i])
	}
	if got := show(r.users["u"].items); got != "b1:g1 b2 l3 b4" {
		t.Errorf("%s waits", got)
	}
	r = newRoom(10, 1<<20)
	r.add(all[1])
	r.take(false, 10, nil)
	r.add(all[3])
	r.add(all[0]) // too late to be before what is being written
	if got := show(r.users["u"].items); got != "b2 b1:g1 b4" {
		t.Errorf("%s waits", got)
	}
}

// TestBeatsOfAQueueFollow: they are ordered by the broker's clock, which is compared with no other.
func TestBeatsOfAQueueFollow(t *testing.T) {
	t.Parallel()
	at := func(received, enqueued int) *item {
		it := itemOfBeat(presence.Beat{User: "u", Session: "s", At: noon.Add(time.Duration(received) * time.Second)})
		if enqueued != 0 {
			it.beat.Enqueued = noon.Add(time.Hour + time.Duration(enqueued)*time.Second)
		}
		return &it
	}
	for _, tt := range []struct {
		first, next *item
		want        bool
	}{
		{at(1, 0), at(1, 0), true},
		{at(2, 0), at(1, 0), false},
		{at(2, 1), at(1, 1), true},
		{at(1, 2), at(2, 1), false},
		{at(1, 0), at(2, 1), false},
		{at(1, 1), at(2, 0), false},
	} {
		if got := tt.first.follows(tt.next); got != tt.want {
			t.Errorf("%v, enqueued %v, then %v, enqueued %v: %v", tt.first.beat.At, tt.first.beat.Enqueued, tt.next.beat.At, tt.next.beat.Enqueued, got)
		}
	}
}

func TestTake(t *testing.T) {
	t.Parallel()
	r := newRoom(100, 1<<20)
	for u := range 3 {
		for _, it := range items(t, "b1:g1 b2 l3 b4") {
			it.beat.User = strconv.Itoa(u)
			r.add(it)
		}
	}
	var took []string
	for leaves := false; r.items > 0; leaves = !leaves {
		c := r.take(leaves, 4, nil)
		for _, it := range c.items {
			if it.leave != leaves {
				t.Fatalf("%s among %v", show([]item{it}), leaves)
			}
		}
		took = append(took, fmt.Sprint(len(c.items)))
		r.written(c, nil)
	}
	// 6 beats before leaves, at most 4 at a time; then as far as each user's order lets.
	if got := strings.Join(took, " "); got != "4 2 4 1 1" {
		t.Errorf("took %s", got)
	}
}

func TestBounds(t *testing.T) {
	t.Parallel()
	beat := func(user string, at int) item {
		it := itemOfBeat(presence.Beat{User: user, Session: "s", At: noon.Add(time.Duration(at) * time.Second)})
		it.ticket = ticket.Add(1)
		return it
	}
	r := newRoom(3, 1<<20)
	for i := range 3 {
		if !r.add(beat(strconv.Itoa(i), 1)) {
			t.Fatal("no room for the first sessions")
		}
	}
	if r.add(beat("more", 2)) || r.items != 3 || r.sessions != 3 || len(r.users) != 3 || r.order.Len() != 3 {
		t.Errorf("a session too many: %+v", r)
	}
	for at := range 100 {
		if !r.add(beat("1", 2+at)) {
			t.Error("no room for a session that waits already")
		}
	}
	r = newRoom(100, 2*beatSize(beat("0", 1)))
	if !r.add(beat("0", 1)) || !r.add(beat("1", 1)) || r.add(beat("2", 1)) || !r.add(beat("1", 2)) {
		t.Errorf("bytes are not bounded: %+v", r)
	}
	r = newRoom(100, 1<<20)
	for i, it := range items(t, "b1 l2 b3 l4 b5 l6 b7 l8 b9 l10") {
		if fits := r.add(it); fits != (i < maxPerSession) {
			t.Errorf("item %d of a session: room %v", i, fits)
		}
	}
	if r.items != maxPerSession || r.sessions != 1 {
		t.Errorf("%+v", r)
	}
}

func beatSize(it item) int64 { return it.size() }

func TestWhatIsTooOld(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, add string
		now       int // seconds after noon
		want      string
		lost      int64
	}{
		{"the default ttl", "b1", 45, "b1", 0},
		{"the default ttl is over", "b1", 46, "", 1},
		{"the grace counts", "b1:t10:r5", 15, "b1:t10:r5", 0},
		{"the grace is over", "b1:t10:r5", 16, "", 1},
		{"groups and meta go to the next beat", "b1:g1:m1:t10 b5:t10", 12, "b5:g1:m1:t10", 0},
		{"which may be over too", "b1:g1:m1:t10 b5:t10", 16, "", 1},
		{"what the next beat sets stays", "b1:g1:m1:t10 b2:g2:t10 b5:t10", 13, "b5:g2:m1:t10", 0},
		{"not the meta of a session that ended", "b1:g1:m1:t10 l2 b5:t10", 12, "l2 b5:g1:t10", 0},
		{"not the groups that another session has set since", "b1:g1:m1:t10 B2:g2 b5:t10", 12, "B2:g2 b5:m1:t10", 0},
		{"an older beat must not revive a session that is over", "b1:g1:t3600 b2:t10", 12, "", 1},
		{"but before a leave", "b1:t3600 l2 b3:t10", 13, "b1:t3600 l2", 1},
		{"a leave stays", "b1:t10 l2", 600, "l2", 1},
		{"for 70 minutes", "l1", 1 + 4199, "l1", 0},
		{"and no longer", "l1", 1 + 4200, "", 1},
		{"one session only", "b1:t10 B1:t20", 11, "B1:t20", 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRoom(10, 1<<20)
			kept(t, r, tt.add)
			r.expire(noon.Add(time.Duration(tt.now) * time.Second))
			got := ""
			if q := r.users["u"]; q != nil {
				got = show(q.items)
			}
			if got != tt.want || r.expired != tt.lost {
				t.Errorf("%q waits and %d are lost, want %q and %d", got, r.expired, tt.want, tt.lost)
			}
			bytes, sessions := int64(0), map[string]bool{}
			for _, q := range r.users {
				for i := range q.items {
					bytes += q.items[i].size()
					sessions[q.items[i].beat.Session] = true
				}
			}
			if r.bytes != bytes || r.sessions != len(sessions) || (len(r.users) == 0) != (tt.want == "") {
				t.Errorf("counts are wrong: %+v", r)
			}
		})
	}
	r := newRoom(10, 1<<20)
	kept(t, r, "b1:t10 b2:g1:t10")
	r.take(false, 1, nil)
	r.expire(noon.Add(time.Hour))
	if got := show(r.users["u"].items); got != "b2:g1:t10" {
		t.Errorf("%s waits while it is written", got)
	}
}

func TestItemsAreCopies(t *testing.T) {
	t.Parallel()
	b := presence.Beat{User: "u", Session: "s", TTL: new(time.Minute), Seq: new(int64(1)), Groups: []string{"g"}, Meta: json.RawMessage(`{"a":1}`)}
	l := presence.Leave{User: "u", Session: "s", Seq: new(int64(1)), At: noon, Traceparent: "t"}
	beat, leave := itemOfBeat(b), itemOfLeave(l)
	*b.TTL, *b.Seq, b.Groups[0], b.Meta[2], *l.Seq = time.Hour, 2, "x", 'x', 2
	if got := beat.beat; *got.TTL != time.Minute || *got.Seq != 1 || !slices.Equal(got.Groups, []string{"g"}) || string(got.Meta) != `{"a":1}` {
		t.Errorf("the beat changed with the caller's: %+v", got)
	}
	if got := leave.asLeave(); *got.Seq != 1 || got.User != "u" || got.Session != "s" || !got.At.Equal(noon) || got.Traceparent != "t" {
		t.Errorf("the leave changed: %+v", got)
	}
	if empty := itemOfBeat(presence.Beat{Groups: []string{}}).beat; empty.Groups == nil || empty.Meta != nil || empty.TTL != nil || empty.Seq != nil {
		t.Errorf("what is omitted and what is empty got mixed up: %+v", empty)
	}
}
