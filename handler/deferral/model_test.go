package deferral

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
)

func TestMain(m *testing.M) { testkit.Main(m) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

var (
	modelSeed      = flag.Uint64("model.seed", 0, "seed of TestSameState; 0 draws one")
	modelScenarios = flag.Int("model.scenarios", 150, "scenarios of TestSameState")
)

// TestSameState runs random beats and leaves through a Store whose breaker opens and closes and whose writes fail,
// and without it, each on a real Redis: in the end both have the same state. In every second scenario another
// process writes at the same time; then the other side keeps everything, one by one, for as long.
func TestSameState(t *testing.T) {
	t.Parallel()
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	server, prefix := testkit.Shared(t)
	client := redisconn.NewClient(redisconn.Endpoint{URL: server.URL()}, "deferral", nil)
	t.Cleanup(func() { _ = client.Close() })
	var superseded, failed, kept int64
	for i := range *modelScenarios {
		s := newScenario(t, rand.New(rand.NewPCG(seed, uint64(i))), client, fmt.Sprintf("%s%d:", prefix, i), i%2 == 1)
		s.run()
		if diff := s.compare(); diff != "" {
			t.Fatalf("scenario %d: %s\n%s\nagain: go test -run TestSameState -model.seed=%d -model.scenarios=%d",
				i, diff, strings.Join(s.story, "\n"), seed, i+1)
		}
		state := s.deferred.State()
		if state.Items != 0 || state.Sessions != 0 || state.Bytes != 0 || (state.Refused > 0) != (s.full > 0) || state.Expired != 0 || !state.Oldest.IsZero() {
			t.Fatalf("scenario %d: state in the end: %+v", i, state)
		}
		if state.Deferred != state.Superseded+state.Written {
			t.Fatalf("scenario %d: items are missing: %+v", i, state)
		}
		superseded, failed, kept = superseded+state.Superseded, failed+state.Failed, kept+state.Deferred
	}
	t.Logf("%d items were kept, %d of them superseded, %d writes failed", kept, superseded, failed)
	if *modelScenarios >= 100 && (superseded == 0 || failed == 0 || kept < 500) {
		t.Error("too little was tried")
	}
}

const (
	scenarioUsers    = 2
	scenarioSessions = 3
)

// scenario is one sequence on both sides.
type scenario struct {
	t        *testing.T
	rng      *rand.Rand
	plain    *redisstore.Store
	flaky    *flakyStore
	deferred *Store
	foreign  bool // another process writes too
	lossy    bool // replies are lost: what was written is written again, maybe without effect, maybe with the same
	open     bool
	late     []func() // what the plain side keeps while something waits on the other
	base     time.Time
	slots    map[int]bool
	seq      map[string]int64
	full     int // times there was no room
	story    []string
}

func newScenario(t *testing.T, rng *rand.Rand, client *redisconn.Client, prefix string, foreign bool) *scenario {
	s := &scenario{
		t: t, rng: rng, foreign: foreign, lossy: !foreign && rng.IntN(2) == 0, slots: map[int]bool{}, seq: map[string]int64{},
		base: time.Now().Add(-500 * time.Second),
	}
	s.plain = redisstore.New(client, redisstore.Config{Prefix: prefix + "plain:", Partitions: 1})
	s.flaky = &flakyStore{Store: redisstore.New(client, redisstore.Config{Prefix: prefix + "deferred:", Partitions: 1}), s: s}
	s.deferred = New(s.flaky, func() Away { return everybody(s.open, time.Second) }, Config{Log: quiet()})
	return s
}

// flakyStore fails as told: before the write, after it, and with a breaker that opens meanwhile.
type flakyStore struct {
	*redisstore.Store
	s                    *scenario
	before, after, opens bool
}

var errFlaky = &fault.Error{Kind: fault.Unavailable, Message: "flaky"}

func flake[In, Out any](f *flakyStore, in []In, call func(context.Context, []In) ([]Out, error)) ([]Out, error) {
	before, after := f.before, f.after
	f.before, f.after = false, false
	if (before || after) && f.opens {
		f.s.open = true
	}
	if before {
		return nil, errFlaky
	}
	out, err := call(f.s.t.Context(), in)
	if err == nil && after {
		return nil, errFlaky
	}
	return out, err
}

func (f *flakyStore) Heartbeats(_ context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error) {
	return flake(f, beats, f.Store.Heartbeats)
}

func (f *flakyStore) Leaves(_ context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error) {
	return flake(f, leaves, f.Store.Leaves)
}

func (s *scenario) tell(format string, args ...any) {
	s.story = append(s.story, fmt.Sprintf(format, args...))
}

func (s *scenario) run() {
	style := s.rng.IntN(4) // of seq: none, all, mixed
	n := 5 + s.rng.IntN(30)
	for i := range n {
		switch s.rng.IntN(10) {
		case 0:
			s.open = true
			s.tell("open")
		case 1:
			s.open = false
			s.tell("closed")
			s.flush()
		case 2:
			s.flaky.before, s.flaky.opens = true, s.rng.IntN(2) == 0
			if s.lossy && s.rng.IntN(2) == 0 {
				s.flaky.before, s.flaky.after = false, true
			}
			s.tell("the next write fails (before %v, after %v, opens %v)", s.flaky.before, s.flaky.after, s.flaky.opens)
		case 3:
			if s.foreign {
				s.step(i, style, true)
				continue
			}
			s.flush()
		}
		s.step(i, style, false)
	}
	s.flaky.before, s.flaky.after, s.open = false, false, false
	s.flush()
	if s.deferred.waiting.Load() != 0 {
		s.t.Fatal("not everything was written")
	}
}

// flush writes what waits, if the breaker lets it; the plain side follows once everything is written.
func (s *scenario) flush() {
	if s.open {
		return
	}
	for {
		err := s.deferred.flush(s.t.Context())
		if err == nil && s.deferred.waiting.Load() == 0 {
			break
		}
		s.tell("flush: %v", err)
		if !s.foreign {
			break
		}
		s.open = false // the other process may write only before or after all of it
	}
	s.follow()
}

func (s *scenario) follow() {
	if s.deferred.waiting.Load() > 0 {
		return
	}
	for _, apply := range s.late {
		apply()
	}
	s.late = nil
}

// instant is the next time in order, or one out of order that no other step has.
func (s *scenario) instant(i int) time.Time {
	slot := (i + 10) * 10
	for s.rng.IntN(6) == 0 || s.slots[slot] {
		slot = (i+10)*10 - s.rng.IntN(60)
	}
	s.slots[slot] = true
	return s.base.Add(time.Duration(slot) * time.Second)
}

// step is a beat or a leave, or several at once, on both sides.
func (s *scenario) step(i, style int, foreign bool) {
	isLeave := s.rng.IntN(4) == 0
	var beats []presence.Beat
	var leaves []presence.Leave
	items := 1
	if s.rng.IntN(5) == 0 {
		items = 3
	}
	for range items {
		user, session := "u"+strconv.Itoa(s.rng.IntN(scenarioUsers)), "s"+strconv.Itoa(s.rng.IntN(scenarioSessions))
		at := s.instant(i)
		var seq *int64
		if style == 1 || style == 2 && s.rng.IntN(2) == 0 {
			key := user + session
			s.seq[key]++
			seq = new(s.seq[key])
			if s.rng.IntN(6) == 0 {
				*seq -= s.rng.Int64N(3)
			}
			*seq = max(*seq, 0)
		}
		if isLeave {
			leaves = append(leaves, presence.Leave{User: user, Session: session, Seq: seq, At: at})
			s.tell("leave foreign=%v %s/%s at %d seq %s", foreign, user, session, int(at.Sub(s.base).Seconds()), text(seq))
			continue
		}
		b := presence.Beat{User: user, Session: session, Seq: seq, At: at, TTL: new([]time.Duration{3600, 3000}[s.rng.IntN(2)] * time.Second)}
		if s.rng.IntN(3) == 0 {
			b.Grace = presence.MaxGrace
		}
		b.Groups = [][]string{nil, nil, {}, {"g1"}, {"g2", "g3"}}[s.rng.IntN(5)]
		if s.lossy && session != "s0" {
			b.Groups = nil // two sessions that set them are not told apart when one of them does so again
		}
		b.Meta = []json.RawMessage{nil, nil, json.RawMessage(`{}`), json.RawMessage(`{"a":1}`), json.RawMessage(`{"b":` + strconv.Itoa(i) + `}`)}[s.rng.IntN(5)]
		beats = append(beats, b)
		s.tell("beat foreign=%v %s/%s at %d seq %s grace %s groups %#v meta %s", foreign, user, session, int(at.Sub(s.base).Seconds()), text(seq), b.Grace, b.Groups, b.Meta)
	}
	onPlain := func() { s.must(s.plain.Heartbeats, s.plain.Leaves, beats, leaves) }
	if foreign {
		onPlain()
		s.must(s.flaky.Store.Heartbeats, s.flaky.Store.Leaves, beats, leaves)
		return
	}
	s.must(s.deferred.Heartbeats, s.deferred.Leaves, beats, leaves)
	if s.foreign {
		// What waits behind the other process's writes on one side must do so on the other.
		s.late = append(s.late, onPlain)
		s.follow()
		return
	}
	onPlain()
}

// must applies items; a client sends them again when that fails.
func (s *scenario) must(heartbeats func(context.Context, []presence.Beat) ([]presence.BeatOutcome, error),
	leave func(context.Context, []presence.Leave) ([]presence.LeaveOutcome, error), beats []presence.Beat, leaves []presence.Leave,
) {
	for range 4 {
		var err error
		if beats != nil {
			_, err = heartbeats(s.t.Context(), beats)
		} else {
			_, err = leave(s.t.Context(), leaves)
		}
		if err == nil {
			return
		}
		s.tell("answer: %v", err)
		if strings.Contains(err.Error(), "too much waits") { // of this session: it comes back when less does
			s.full++
			s.open = false
			s.flush()
		}
	}
	s.t.Fatalf("the store stays away:\n%s", strings.Join(s.story, "\n"))
}

func text(seq *int64) string {
	if seq == nil {
		return "-"
	}
	return strconv.FormatInt(*seq, 10)
}

// same ignores what tells when and how often things happened. Instants are those of the receipt, to the millisecond.
var same = cmp.Options{
	cmpopts.IgnoreFields(presence.User{}, "Epoch", "Since"),
	cmpopts.IgnoreFields(presence.Session{}, "StartEpoch"),
	cmpopts.IgnoreFields(presence.BeatOutcome{}, "Epoch"),
	cmpopts.SortSlices(func(a, b presence.Session) bool { return a.ID < b.ID }),
	cmpopts.EquateEmpty(),
}

// compare says where the two sides differ: in what they know of the users, in the seq of each session, and in
// what they make of further beats and leaves with instants all over the past, which shows what they remember.
func (s *scenario) compare() string {
	ids := make([]string, scenarioUsers)
	for u := range ids {
		ids[u] = "u" + strconv.Itoa(u)
	}
	both := func(ask func(*redisstore.Store) (any, error)) string {
		var got [2]any
		for i, side := range []*redisstore.Store{s.plain, s.flaky.Store} {
			var err error
			if got[i], err = ask(side); err != nil {
				s.t.Fatal(err)
			}
		}
		return cmp.Diff(got[0], got[1], same)
	}
	users := func(store *redisstore.Store) (any, error) { return store.Users(s.t.Context(), ids) }
	if diff := both(users); diff != "" {
		return "the users differ: " + diff
	}
	for round := range 4 {
		for _, user := range ids {
			for n := range scenarioSessions {
				b := presence.Beat{User: user, Session: "s" + strconv.Itoa(n), TTL: new(time.Hour), At: s.instant(s.rng.IntN(40))}
				switch {
				case round == 0: // too old to change anything, and answered with the last seq
					b.At = time.Now().Add(-2 * time.Hour)
				case s.rng.IntN(3) == 0:
					leave := presence.Leave{User: user, Session: b.Session, At: b.At}
					if diff := both(func(store *redisstore.Store) (any, error) {
						return store.Leaves(s.t.Context(), []presence.Leave{leave})
					}); diff != "" {
						return fmt.Sprintf("a leave of %s/%s at %d is answered otherwise: %s", user, b.Session, int(b.At.Sub(s.base).Seconds()), diff)
					}
					continue
				}
				if diff := both(func(store *redisstore.Store) (any, error) {
					return store.Heartbeats(s.t.Context(), []presence.Beat{b})
				}); diff != "" {
					return fmt.Sprintf("a beat of %s/%s at %d is answered otherwise: %s", user, b.Session, int(b.At.Sub(s.base).Seconds()), diff)
				}
			}
		}
	}
	if diff := both(users); diff != "" {
		return "the users differ after further beats and leaves: " + diff
	}
	return ""
}
