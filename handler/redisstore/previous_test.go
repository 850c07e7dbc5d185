package redisstore

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
)

// previous makes calls as the build before does, whose scripts are in testdata/previous: an age instead of an instant.
type previous struct {
	*bench
	scripts map[string]*redis.Script
}

func newPrevious(b *bench) *previous {
	b.t.Helper()
	text := func(names ...string) *redis.Script {
		var all strings.Builder
		for _, name := range names {
			lua, err := os.ReadFile(filepath.Join("testdata", "previous", name+".lua"))
			if err != nil {
				b.t.Fatal(err)
			}
			all.Write(lua)
		}
		return redis.NewScript(all.String())
	}
	return &previous{b, map[string]*redis.Script{
		"renew":     text("clock", "renew"),
		"heartbeat": text("clock", "partition", "state", "heartbeat"),
		"leave":     text("clock", "partition", "state", "leave"),
		"due":       text("clock", "partition", "due"),
		"claim":     text("clock", "partition", "state", "claim"),
	}}
}

func (p *previous) run(script string, keys []string, args ...any) any {
	p.t.Helper()
	var all []string
	if script != "renew" {
		for _, k := range p.store.keys.shared(0) {
			all = append(all, k.(string))
		}
		args = append([]any{"previous", "1"}, args...)
	}
	got, err := p.scripts[script].Run(p.t.Context(), p.raw, append(all, keys...), args...).Result()
	if err != nil {
		p.t.Fatalf("%s of the build before: %v", script, err)
	}
	return got
}

func (p *previous) keysOf(user, session string) []string {
	return []string{p.store.keys.user(0, user), p.store.keys.lease(0, user, session)}
}

// beat is a beat of ttl 10 s, by renew.lua first. It returns the change.
func (p *previous) beat(user, session string) string {
	k := p.store.keys
	keys := append([]string{k.in(0, "meta"), k.in(0, "due")}, p.keysOf(user, session)...)
	name := session
	if name == presence.DefaultSession {
		name = ""
	}
	answer := p.run("renew", keys, "1", 1, 10_000, "10,"+name+",,").(string)
	if _, epoch, _ := strings.Cut(answer, "\n"); epoch != "" {
		return "renewed"
	}
	answers := p.run("heartbeat", p.keysOf(user, session), user, session, 10, 0, 0, "", keepGroups, "", "").([]any)
	change, _, _ := strings.Cut(answers[0].(string), ",")
	return change
}

func (p *previous) leave(user, session string) string {
	return p.run("leave", p.keysOf(user, session), user, session, 0, "", "").([]any)[0].(string)
}

// sweep claims what is due and returns how much that was.
func (p *previous) sweep() (claimed int) {
	var keys []string
	var args []any
	for _, m := range p.run("due", nil, 200).([]any)[3:] {
		user, session, _ := cutMember(m.(string))
		keys, args = append(keys, p.keysOf(user, session)...), append(args, m, len(user))
	}
	if len(args) == 0 {
		return 0
	}
	for _, late := range p.run("claim", keys, args...).([]any) {
		if late.(int64) >= 0 {
			claimed++
		}
	}
	return claimed
}

// TestBesideThePreviousBuild: while a new build is deployed both work on the same records: which of the two does a step
// makes no difference to what it answers, and each transition makes its event once.
func TestBesideThePreviousBuild(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := newPrevious(b)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	isOnline := map[string]map[string]bool{"a": {}, "b": {}, "c": {}}
	sessions := []string{presence.DefaultSession, "tab", "z"}
	want := 0 // events
	for step := range 400 {
		user, session, byOld := pick(rng, "a", "b", "c"), pick(rng, sessions...), rng.IntN(2) == 0
		live := isOnline[user]
		what, got, expected := "", "", ""
		b.pass(10 * time.Millisecond) // the age of the one and the instant of the other are rounded
		switch n := rng.IntN(10); {
		case n < 6:
			what, expected = "beat", "renewed"
			if !live[session] {
				want++
				if expected = "started"; len(live) == 0 {
					expected = "online"
				}
			}
			live[session] = true
			if byOld {
				got = old.beat(user, session)
			} else {
				got = string(b.beat(presence.Beat{User: user, Session: session, At: time.Now()}).Change)
			}
		case n < 8:
			what, expected = "leave", "unknown"
			if live[session] {
				want++
				expected = "left"
			}
			delete(live, session)
			if byOld {
				got = old.leave(user, session)
			} else {
				got = string(b.leave(presence.Leave{User: user, Session: session, At: time.Now()}))
			}
		default:
			what = "sweep"
			n := len(isOnline["a"]) + len(isOnline["b"]) + len(isOnline["c"])
			want += n
			expected = fmt.Sprint(n)
			clear(isOnline["a"])
			clear(isOnline["b"])
			clear(isOnline["c"])
			b.pass(11 * time.Second)
			if byOld {
				got = fmt.Sprint(old.sweep())
			} else {
				got = fmt.Sprint(len(b.sweep().Late))
			}
		}
		if got != expected {
			t.Fatalf("step %d: %s of %s/%s, by the build before %v: %s, want %s", step, what, user, session, byOld, got, expected)
		}
		u := b.user(user)
		if u == nil && len(live) > 0 || u != nil && len(u.Sessions) != len(live) {
			t.Fatalf("step %d: after a %s of %s/%s it is %+v, want the sessions %v", step, what, user, session, u, live)
		}
	}
	if got := len(b.events()); got != want {
		t.Errorf("%d events, want %d", got, want)
	}
	if n := b.raw.XLen(t.Context(), b.store.keys.in(0, "quarantine")).Val(); n != 0 {
		t.Errorf("%d notes in quarantine", n)
	}
}
