package redisstore

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisconn"
)

var (
	modelSeed     = flag.Uint64("model.seed", 0, "seed of TestModel; 0 draws one")
	modelSteps    = flag.Int("model.steps", 20_000, "steps of TestModel")
	modelScenario = flag.Int("model.scenario", -1, "run only this scenario of TestModel")
)

// modelWorkers is how many scenarios run at once, each worker with a Redis of its own.
const modelWorkers = 2

// TestModel runs random scenarios on a real Redis and compares each step with a model of the rules. A step is
// one call of the store whose outcome is compared: heartbeats, leaves, a look for what is due, a claim, or a
// relay's call. Moving the time and comparing the whole state are no steps.
func TestModel(t *testing.T) {
	seed := *modelSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	lengths := []int{}
	for left, rng := *modelSteps, rand.New(rand.NewPCG(seed, 0)); left > 0; {
		n := 100 + rng.IntN(900)
		if isCrowd(len(lengths)) { // each step takes longer
			n /= 3
		}
		lengths, left = append(lengths, min(n, left)), left-n
	}
	began := time.Now()
	shared := &modelShared{ids: map[string]bool{}}
	tallies := make([]tally, modelWorkers)
	t.Run("scenarios", func(t *testing.T) {
		for w := range tallies {
			tallies[w] = tally{}
			t.Run(strconv.Itoa(w), func(t *testing.T) {
				t.Parallel()
				b := newModelBench(t, shared, tallies[w])
				for i := shared.take(); i < len(lengths); i = shared.take() {
					if *modelScenario >= 0 && i != *modelScenario {
						continue
					}
					if wrong := b.run(seed, i, lengths[i]); wrong != "" {
						t.Fatalf("scenario %d: %s\nagain: go test -run TestModel -model.seed=%d -model.steps=%d -model.scenario=%d",
							i, wrong, seed, *modelSteps, i)
					}
				}
			})
		}
	})
	sum := tally{}
	for _, one := range tallies {
		for what, n := range one {
			sum[what] += n
		}
	}
	t.Logf("model: %d steps, %d scenarios, %d events, %d wrong states, %d double offlines, %d epochs that did not rise, "+
		"%d ids on two events; seed %d, %.1f s", sum["steps"], sum["scenarios"], sum["events"], sum["wrong states"],
		sum["double offlines"], sum["epochs that did not rise"], sum["ids on two events"], seed, time.Since(began).Seconds())
	for _, what := range slices.Sorted(maps.Keys(sum)) {
		t.Logf("%10d %s", sum[what], what)
	}
	if t.Failed() || *modelScenario >= 0 || *modelSteps < 20_000 {
		return
	}
	for _, what := range modelMust {
		if sum[what] == 0 {
			t.Errorf("nothing was tried of %q", what)
		}
	}
}

// modelMust are the kinds of things that a full run of TestModel has tried.
var modelMust = []string{
	"beat online", "beat started", "beat renewed", "beat stale", "beat full", "beat with seq", "beat with age", "beat on an overdue session",
	"beat cancels a leave", "beat of a forgotten user", "heartbeats in bulk",
	"leave left", "leave leaving", "leave stale", "leave unknown", "leave with seq", "leave with age", "leaves in bulk",
	"look", "claim won", "claim lost", "reply lost", "script flush", "floor raised",
	"refused heartbeats", "refused leaves", "refused claim", "refused whole",
	"beat done by renew.lua", "beat left to heartbeat.lua", "heartbeats cut after renew.lua",
	"time moved", "silence of more than a day", "silence of more than 70 minutes", "record forgotten",
	"relay next", "relay own", "relay takes over", "relay acknowledges", "whole state compared",
	"event user.online beat", "event session.started beat", "event session.ended expired", "event session.ended left",
	"event user.offline expired", "event user.offline left",
}

// tally counts what was done.
type tally map[string]int

// modelShared is what the workers share.
type modelShared struct {
	next atomic.Int64 // the next scenario
	mu   sync.Mutex
	ids  map[string]bool // the ids of all events of all scenarios
}

func (m *modelShared) take() int { return int(m.next.Add(1)) - 1 }

// use notes an event's id, and reports whether it is new.
func (m *modelShared) use(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.ids[id]
	m.ids[id] = true
	return !known
}

// modelBench is one worker's Redis.
type modelBench struct {
	t      *testing.T
	shared *modelShared
	tally  tally
	rig    *rig
	client *redisconn.Client
	raw    *redis.Client
}

func newModelBench(t *testing.T, shared *modelShared, sum tally) *modelBench {
	t.Helper()
	server := testkit.Start(t)
	b := &modelBench{
		t: t, shared: shared, tally: sum, rig: &rig{}, client: redisconn.NewClient(redisconn.Endpoint{URL: server.URL()}, "model", nil),
		raw: redis.NewClient(&redis.Options{Addr: server.Addr, MaxRetries: -1}),
	}
	t.Cleanup(func() {
		_ = b.client.Close()
		_ = b.raw.Close()
	})
	hooked, err := b.client.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	hooked.AddHook(b.rig)
	return b
}

// isCrowd reports whether a scenario has more sessions than a user may have, and than one sweep takes.
func isCrowd(number int) bool { return number%12 == 5 }

// isPlain reports whether the users of a scenario have one session each, whose beats mostly just renew it.
func isPlain(number int) bool { return number%3 == 0 }

// scenario is a few users, two sweepers and two relays that do random things.
type scenario struct {
	*modelBench
	ctx    context.Context
	rng    *rand.Rand
	m      *model
	now    int64 // the time of Redis, in ms
	ledger *ledger
	store  *Store
	users  []string
	names  []string
	bulk   int  // how many items a bulk has at most
	plain  bool // most beats have neither groups nor meta
	leases bool // lease keys are kept
	enact  bool // Redis deletes keys when their time is over
	looks  [2][]Due
	relays [2]*Outbox
	held   [2][]Entry // what a relay read and has not acknowledged
	began  time.Time
	// compared are the texts of outbox entries that were found right, by their number.
	compared map[int64]string
	left     int // steps to do
	history  []done
}

// done is a step for the report of a failure.
type done struct {
	now     int64
	what    string
	in, got any
}

// mismatch is the panic that ends a scenario.
type mismatch string

// run runs one scenario and returns what was wrong, "" when nothing was.
func (b *modelBench) run(seed uint64, number, steps int) (wrong string) {
	rng := rand.New(rand.NewPCG(seed, uint64(number)+1))
	s := &scenario{
		modelBench: b, ctx: b.t.Context(), rng: rng, m: newModel(), ledger: newLedger(), began: time.Now(), left: steps, compared: map[int64]string{},
		leases: rng.IntN(8) > 0, enact: rng.IntN(4) > 0, bulk: 2 + rng.IntN(8),
	}
	s.store = New(b.client, Config{Prefix: fmt.Sprintf("m%d:", number), Partitions: 1, LeaseKeys: s.leases})
	s.store.clockOf = func(int) *redisconn.Clock { return stillClock() }
	s.m.life = s.store.args[0].(string)
	users := 1 + rng.IntN(5)
	s.names = []string{presence.DefaultSession, "a", "tab:~1=+-|@._", "z"}[:1+rng.IntN(4)]
	if isPlain(number) {
		s.plain, s.names = true, s.names[:1]
		if rng.IntN(2) == 0 {
			s.names[0] = "only"
		}
	}
	if isCrowd(number) {
		users, s.bulk = 8, 50
		for i := range 40 {
			s.names = append(s.names, "s"+strconv.Itoa(i))
		}
	}
	for i := range users {
		s.users = append(s.users, fmt.Sprintf("%d|user@%d.%s", number, i, strings.Repeat("u", rng.IntN(4))))
	}
	for i := range s.relays {
		s.relays[i] = s.store.Outbox("relay" + strconv.Itoa(i))
	}
	s.moveTo(stillAt + rng.Int64N(300_000_000_000))
	defer func() {
		s.store.Close()
		b.tally["beat done by renew.lua"] += b.rig.short
		b.tally["beat left to heartbeat.lua"] += b.rig.long
		b.rig.short, b.rig.long = 0, 0
		b.tally["scenarios"]++
		b.tally["double offlines"] += s.ledger.doubleOfflines
		b.tally["epochs that did not rise"] += s.ledger.epochsNotRising
		b.tally["ids on two events"] += s.ledger.idsTwice
		if p := recover(); p != nil {
			text, ok := p.(mismatch)
			if !ok {
				panic(p)
			}
			wrong = string(text) + "\n" + s.report()
		}
	}()
	if isCrowd(number) {
		s.fill()
	}
	for s.left > 0 {
		s.act()
	}
	s.finish()
	s.must("flush", b.raw.FlushDB(s.ctx).Err())
	return ""
}

// fill starts all the sessions that there can be; in half of the scenarios all of them become due at once.
func (s *scenario) fill() {
	for _, user := range s.users {
		b := batch[presence.Beat]{Ages: make([]int64, len(s.names))}
		for _, name := range s.names {
			b.Items = append(b.Items, presence.Beat{User: user, Session: name, TTL: seconds(45)})
		}
		s.heartbeats(b)
	}
	if s.rng.IntN(2) == 0 {
		s.moveTo(s.now + 60_000)
		s.look(0)
	}
}

// acts are the things that a scenario does, with their weights.
var acts = []struct {
	weight int
	do     func(*scenario)
}{
	{26, (*scenario).pass},
	{30, func(s *scenario) { s.heartbeats(s.someBeats(1)) }},
	{8, func(s *scenario) { s.heartbeats(s.someBeats(s.bulk)) }},
	{9, func(s *scenario) { s.leave(s.someLeaves(1)) }},
	{3, func(s *scenario) { s.leave(s.someLeaves(s.bulk)) }},
	{9, func(s *scenario) { s.look(s.rng.IntN(2)) }},
	{9, func(s *scenario) { s.claim(s.rng.IntN(2)) }},
	{2, (*scenario).refused},
	{2, (*scenario).lost},
	{6, (*scenario).relay},
	{3, (*scenario).compareAll},
	{1, (*scenario).upset},
}

func (s *scenario) act() {
	sum := 0
	for _, a := range acts {
		sum += a.weight
	}
	at := s.rng.IntN(sum)
	for _, a := range acts {
		if at -= a.weight; at < 0 {
			a.do(s)
			return
		}
	}
}

// wrongf ends the scenario: the store does not do what the model says.
func (s *scenario) wrongf(format string, args ...any) {
	s.tally["wrong states"]++
	panic(mismatch(fmt.Sprintf(format, args...)))
}

func (s *scenario) must(what string, err error) {
	if err != nil {
		panic(mismatch(what + ": " + err.Error()))
	}
}

// step counts a step and keeps it for the report.
func (s *scenario) step(what string, in, got any) {
	s.left--
	s.tally["steps"]++
	s.tally[what]++
	s.history = append(s.history, done{s.now, what, in, got})
}

// report is the end of the scenario's history.
func (s *scenario) report() string {
	var b strings.Builder
	for _, d := range s.history[max(0, len(s.history)-25):] {
		in, _ := json.Marshal(d.in)
		got, _ := json.Marshal(d.got)
		fmt.Fprintf(&b, "at %d %s %s -> %s\n", d.now, d.what, in, got)
	}
	return b.String()
}

// settle compares what a script answered with the model, and takes the model on.
func settle[T any](s *scenario, what string, got T, apply func(m *model, now int64) T) {
	if want := apply(s.m, s.now); !reflect.DeepEqual(want, got) {
		s.wrongf("%s at %d (-want +got):\n%s", what, s.now, cmp.Diff(want, got))
	}
}

// batch is the items of a call and their ages in ms.
type batch[T any] struct {
	Items []T
	Ages  []int64
}

// still is when every item of a model test is sent: the time between making and sending it is no part of a scenario.
var still = time.UnixMilli(1_700_000_000_000)

// stillClock is a clock that dates what is sent at still by the clock of the rig's Redis.
func stillClock() *redisconn.Clock {
	c := redisconn.NewClock()
	c.Learn(time.UnixMilli(stillAt), 0, still, still)
	return c
}

// aged gives each item the time that makes it as old as it should be.
func (b batch[T]) aged(at func(*T) *time.Time) []T {
	items := slices.Clone(b.Items)
	for i := range items {
		*at(&items[i]) = still.Add(-time.Duration(b.Ages[i]) * time.Millisecond)
	}
	return items
}

func (s *scenario) sendBeats(b batch[presence.Beat]) ([]presence.BeatOutcome, error) {
	s.rig.full = slices.ContainsFunc(b.Items, func(b presence.Beat) bool { return b.Groups != nil || b.Meta != nil })
	return s.store.Heartbeats(s.ctx, b.aged(func(b *presence.Beat) *time.Time { return &b.At }))
}

func (s *scenario) sendLeaves(b batch[presence.Leave]) ([]presence.LeaveOutcome, error) {
	return s.store.Leaves(s.ctx, b.aged(func(l *presence.Leave) *time.Time { return &l.At }))
}

func (m *model) beats(now int64, b batch[presence.Beat]) []presence.BeatOutcome {
	out := make([]presence.BeatOutcome, len(b.Items))
	for i, beat := range b.Items {
		out[i] = m.beat(now, beat, b.Ages[i])
	}
	return out
}

func (m *model) leaves(now int64, b batch[presence.Leave]) []presence.LeaveOutcome {
	out := make([]presence.LeaveOutcome, len(b.Items))
	for i, l := range b.Items {
		out[i] = m.leave(now, l, b.Ages[i])
	}
	return out
}

func (s *scenario) heartbeats(b batch[presence.Beat]) {
	for i, beat := range b.Items {
		u := s.m.user(beat.User, s.now)
		if live := u.session(beat.Session); live != nil {
			s.when(live.due <= s.now, "beat on an overdue session")
			s.when(live.leaving, "beat cancels a leave")
		}
		s.when(u.saved == 0 && s.ledger.users[beat.User] != nil, "beat of a forgotten user")
		s.when(beat.Seq != nil, "beat with seq")
		s.when(b.Ages[i] > 0, "beat with age")
	}
	got, err := s.sendBeats(b)
	s.must("heartbeats", err)
	s.step("heartbeats", b, got)
	s.when(len(b.Items) > 1, "heartbeats in bulk")
	for _, o := range got {
		s.tally["beat "+string(o.Change)]++
	}
	settle(s, "heartbeats", got, func(m *model, now int64) []presence.BeatOutcome { return m.beats(now, b) })
}

func (s *scenario) leave(b batch[presence.Leave]) {
	got, err := s.sendLeaves(b)
	s.must("leaves", err)
	s.step("leaves", b, got)
	s.when(len(b.Items) > 1, "leaves in bulk")
	for i, o := range got {
		s.tally["leave "+string(o)]++
		s.when(b.Items[i].Seq != nil, "leave with seq")
		s.when(b.Ages[i] > 0, "leave with age")
	}
	settle(s, "leaves", got, func(m *model, now int64) []presence.LeaveOutcome { return m.leaves(now, b) })
}

// look is the first half of a sweep; claim is the other, maybe much later.
func (s *scenario) look(sweeper int) {
	got, err := s.store.Due(s.ctx, []int{0})
	s.must("due", err)
	s.step("look", sweeper, got)
	s.when(got[0].Full(), "look with more due than it takes")
	s.looks[sweeper] = got
	settle(s, "due", got, func(m *model, now int64) []Due { return []Due{m.due(now)} })
}

func (s *scenario) claim(sweeper int) {
	if len(s.looks[sweeper]) == 0 || len(s.looks[sweeper][0].Members) == 0 {
		s.look(sweeper)
		if len(s.looks[sweeper][0].Members) == 0 {
			return
		}
	}
	due := s.looks[sweeper]
	got, err := s.store.Claim(s.ctx, due)
	s.must("claim", err)
	s.step("claim", sweeper, got)
	s.tally["claim won"] += len(got.Late)
	s.tally["claim lost"] += got.Lost
	settle(s, "claim", got, func(m *model, now int64) Claims { return m.claim(now, due[0].Members) })
	if s.rng.IntN(4) > 0 { // else the list is claimed again
		s.looks[sweeper] = nil
	}
}

// refused is a call while Redis refuses writes: it fails whole, or had nothing to write.
func (s *scenario) refused() {
	refuse := slices.Sorted(maps.Keys(refusals))[s.rng.IntN(len(refusals))]
	switch s.rng.IntN(3) {
	case 0:
		b := s.someBeats(s.bulk)
		s.rig.refuse = refuse
		got, err := s.sendBeats(b)
		s.rig.refuse = ""
		s.step("refused heartbeats", b, got)
		// Stale beats, too, write the pulse.
		refuse := func(o []presence.BeatOutcome) refusal {
			if slices.ContainsFunc(o, func(o presence.BeatOutcome) bool {
				return o.Change != presence.ChangeStale && o.Change != presence.ChangeFull
			}) {
				return surely
			}
			return maybe
		}
		settleRefused(s, got, err, refuse, func(m *model, now int64) []presence.BeatOutcome { return m.beats(now, b) })
	case 1:
		b := s.someLeaves(s.bulk)
		s.rig.refuse = refuse
		got, err := s.sendLeaves(b)
		s.rig.refuse = ""
		s.step("refused leaves", b, got)
		refuse := func(o []presence.LeaveOutcome) refusal {
			if slices.ContainsFunc(o, func(o presence.LeaveOutcome) bool { return o != presence.LeaveStale }) {
				return surely
			}
			return never
		}
		settleRefused(s, got, err, refuse, func(m *model, now int64) []presence.LeaveOutcome { return m.leaves(now, b) })
	case 2:
		s.look(0)
		due := s.looks[0]
		if len(due[0].Members) == 0 {
			return
		}
		s.rig.refuse = refuse
		got, err := s.store.Claim(s.ctx, due)
		s.rig.refuse = ""
		s.step("refused claim", due, got)
		refuse := func(c Claims) refusal {
			if len(c.Late) > 0 {
				return surely
			}
			return never
		}
		settleRefused(s, got, err, refuse, func(m *model, now int64) Claims { return m.claim(now, due[0].Members) })
	}
}

// refusal says whether a call with an outcome is refused.
type refusal int

const (
	never refusal = iota
	maybe
	surely
)

// settleRefused settles a call that was made while Redis refused writes.
func settleRefused[T any](s *scenario, got T, err error, refused func(T) refusal, apply func(m *model, now int64) T) {
	if err == nil {
		if refused(got) == surely {
			s.wrongf("a call was answered with %+v while Redis refused writes", got)
		}
		settle(s, "a call without a write", got, apply)
		return
	}
	if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "OOM") && !strings.Contains(err.Error(), "NOREPLICAS") {
		s.must("a refused call", err)
	}
	s.tally["refused whole"]++
	if want := apply(s.m.clone(), s.now); refused(want) == never {
		s.wrongf("a call that had nothing to write was refused: %v", err)
	}
	s.compareAll()
}

// lost is a call whose reply does not arrive, although it was carried out, and which is then made again.
func (s *scenario) lost() {
	s.tally["reply lost"]++
	s.rig.lose = true
	switch s.rng.IntN(3) {
	case 0:
		b := s.someBeats(s.bulk)
		s.rig.cut = s.rng.IntN(2) == 0
		_, err := s.sendBeats(b)
		applied := b
		if s.rig.cut {
			s.rig.cut = false
			s.tally["heartbeats cut after renew.lua"]++
			applied = renewed(b, s.rig.renewed)
		}
		s.settleLost("heartbeats without a reply", b, err, func(m *model, now int64) { m.beats(now, applied) })
		if sent := s.now; s.rng.IntN(2) == 0 {
			s.pass()
			for i := range b.Ages {
				b.Ages[i] += s.now - sent
			}
		}
		s.heartbeats(b)
	case 1:
		b := s.someLeaves(s.bulk)
		_, err := s.sendLeaves(b)
		s.settleLost("leaves without a reply", b, err, func(m *model, now int64) { m.leaves(now, b) })
		s.leave(b)
	case 2:
		s.rig.lose = false
		s.look(1)
		due := s.looks[1]
		if len(due[0].Members) == 0 {
			return
		}
		s.rig.lose = true
		_, err := s.store.Claim(s.ctx, due)
		s.settleLost("claim without a reply", due, err, func(m *model, now int64) { m.claim(now, due[0].Members) })
		s.claim(1)
	}
}

// renewed returns the beats that renew.lua did: it is not asked about users of whom a beat has groups or meta.
func renewed(b batch[presence.Beat], answers []string) (did batch[presence.Beat]) {
	full := map[string]bool{}
	for _, beat := range b.Items {
		full[beat.User] = full[beat.User] || beat.Groups != nil || beat.Meta != nil
	}
	n := 0
	for i, beat := range b.Items {
		if full[beat.User] {
			continue
		}
		if answers[n] != "" {
			did.Items, did.Ages = append(did.Items, beat), append(did.Ages, b.Ages[i])
		}
		n++
	}
	return did
}

func (s *scenario) settleLost(what string, in any, err error, apply func(m *model, now int64)) {
	s.step(what, in, nil)
	if fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), errReplyLost.Error()) {
		s.wrongf("%s: %v", what, err)
	}
	type nothing struct{}
	settle(s, what, nothing{}, func(m *model, now int64) nothing {
		apply(m, now)
		return nothing{}
	})
}

// upset is what happens to Redis now and then.
func (s *scenario) upset() {
	switch s.rng.IntN(3) {
	case 0:
		s.must("flush scripts", s.raw.ScriptFlush(s.ctx).Err())
		s.tally["script flush"]++
	case 1:
		ahead := int64(3_600_000)
		if s.rng.IntN(8) == 0 {
			ahead = 3 * recordMemory // longer than a record is kept
		}
		floor := s.now + s.rng.Int64N(ahead)
		if floor > s.m.floor {
			s.must("raise the floor", s.raw.HSet(s.ctx, s.store.keys.in(0, "meta"), "floor", floor).Err())
			s.m.floor = floor
			s.tally["floor raised"]++
		}
	}
}

// pass moves the time: mostly by little, often to just where something changes, now and then by days.
func (s *scenario) pass() {
	now := s.now
	var to int64
	switch n := s.rng.IntN(100); {
	case n < 35:
		to = now + s.rng.Int64N(5)
	case n < 60:
		to = now + s.rng.Int64N(20_000)
	case n < 65:
		to = now + s.rng.Int64N(600_000)
	case n < 97:
		turns := s.m.turns(now)
		if len(turns) == 0 {
			return
		}
		if n < 90 { // the nearest ones are reached before anything else happens
			slices.Sort(turns)
			turns = turns[:min(len(turns), 3)]
		}
		to = max(turns[s.rng.IntN(len(turns))]+s.rng.Int64N(3)-1, now)
	case n < 99:
		to = now + endMemory + s.rng.Int64N(600_000)
	default:
		to = now + recordMemory + s.rng.Int64N(48*3_600_000)
	}
	s.moveTo(to)
}

func (s *scenario) moveTo(to int64) {
	s.tally["time moved"]++
	s.when(to-s.now > recordMemory, "silence of more than a day")
	s.when(to-s.now > endMemory, "silence of more than 70 minutes")
	s.history = append(s.history, done{s.now, "time moves to", to, nil})
	s.now = to
	s.must("move the time", s.raw.HSet(s.ctx, s.store.keys.in(0, "meta"), "offset", to-stillAt).Err())
	s.expire()
}

// expire deletes the keys whose time is over: Redis counts their time to live by its own clock, which did
// not move. In some scenarios it does not, and the scripts have to see by themselves that it is over.
func (s *scenario) expire() {
	var over []string
	for _, id := range s.users {
		u := s.m.users[id]
		if u == nil || u.saved == 0 {
			continue
		}
		for _, l := range u.live {
			if l.due <= s.now {
				over = append(over, s.store.keys.lease(0, id, l.name))
			}
		}
		if len(u.live) == 0 && u.forgottenAt() <= s.now {
			s.tally["record forgotten"]++
			over = append(over, s.store.keys.user(0, id))
			s.m.user(id, s.now)
		}
	}
	if s.enact && len(over) > 0 {
		s.must("delete expired keys", s.raw.Del(s.ctx, over...).Err())
	}
}

// relay is one call of one of the relays.
func (s *scenario) relay() {
	r := s.rng.IntN(2)
	limit := 1 + s.rng.IntN(60)
	switch s.rng.IntN(6) {
	case 0, 1:
		s.next(r, limit)
	case 2:
		got, err := s.relays[r].Own(s.ctx, 0, "", limit)
		s.must("own", err)
		s.compareEntries("relay own", r, s.m.read(r, r, limit), got)
		s.hold(r, got)
	case 3:
		idle := time.Duration(s.rng.IntN(2)) * time.Hour // nothing is idle for an hour
		got, _, err := s.relays[r].TakeOver(s.ctx, 0, idle, nil, "", limit)
		s.must("take over", err)
		var want []Entry
		if idle == 0 {
			want = s.m.takeOver(r, limit)
		}
		s.compareEntries("relay takes over", r, want, got)
		s.hold(r, got)
	default:
		n := min(limit, len(s.held[r]))
		if n == 0 {
			s.next(r, limit)
			return
		}
		s.acknowledge(r, s.held[r][:n])
		s.held[r] = s.held[r][n:]
	}
}

// next reads new entries; each is in the ledger once, in the order of the outbox.
func (s *scenario) next(r, limit int) int {
	want := s.m.read(r, -1, limit)
	got, err := s.relays[r].Next(s.ctx, 0, limit)
	s.must("next", err)
	s.compareEntries("relay next", r, want, got)
	for _, e := range got {
		if err := s.ledger.take(e); err != nil {
			s.wrongf("%v", err)
		}
		if !s.shared.use(e.Event.ID) {
			s.tally["ids on two events"]++
			s.wrongf("id %s was on an event of another scenario", e.Event.ID)
		}
		s.tally["events"]++
		s.tally["event "+string(e.Event.Type)+" "+string(e.Event.Reason)]++
	}
	s.hold(r, got)
	return len(got)
}

// hold keeps what a relay read until it acknowledges it.
func (s *scenario) hold(r int, entries []Entry) {
	for _, e := range entries {
		if !slices.ContainsFunc(s.held[r], func(h Entry) bool { return h.N == e.N }) {
			s.held[r] = append(s.held[r], e)
		}
	}
}

func (s *scenario) acknowledge(r int, entries []Entry) {
	s.must("acknowledge", s.relays[r].Acknowledge(s.ctx, 0, entries))
	s.step("relay acknowledges", r, len(entries))
	s.m.acknowledge(entries)
}

func (s *scenario) compareEntries(what string, relay int, want, got []Entry) {
	s.step(what, relay, len(got))
	if diff := diffEntries(want, got); diff != "" {
		s.wrongf("%s (-want +got):\n%s", what, diff)
	}
}

// diffEntries compares entries by all but their place in the stream.
func diffEntries(want, got []Entry) string {
	same := len(want) == len(got)
	for i := 0; same && i < len(want); i++ {
		w := want[i]
		w.StreamID, w.packed = got[i].StreamID, got[i].packed
		same = reflect.DeepEqual(w, got[i])
	}
	if same {
		return ""
	}
	return cmp.Diff(want, got, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(Entry{}, "StreamID"), cmpopts.IgnoreUnexported(Entry{}))
}

// compareAll compares everything that is in Redis with the model.
func (s *scenario) compareAll() {
	s.tally["whole state compared"]++
	if diff := s.difference(); diff != "" {
		s.wrongf("the state at %d: %s", s.now, diff)
	}
}

// difference tells where the state in Redis is not the model's.
func (s *scenario) difference() string {
	m := s.m
	k := s.store.keys
	shared := k.shared(0)
	pipe := s.raw.Pipeline()
	index := pipe.ZRangeWithScores(s.ctx, shared[1].(string), 0, -1)
	events := pipe.HGet(s.ctx, shared[0].(string), "n")
	outbox := pipe.XRange(s.ctx, shared[2].(string), "-", "+")
	notes := pipe.XLen(s.ctx, shared[3].(string))
	records := make([]*redis.DurationCmd, len(s.users))
	leases := make([][]*redis.DurationCmd, len(s.users))
	for i, id := range s.users {
		records[i] = pipe.PTTL(s.ctx, k.user(0, id))
		leases[i] = make([]*redis.DurationCmd, len(s.names))
		for j, name := range s.names {
			leases[i][j] = pipe.PTTL(s.ctx, k.lease(0, id, name))
		}
	}
	if _, err := pipe.Exec(s.ctx); err != nil && err != redis.Nil {
		s.must("read the state", err)
	}
	now := s.now
	seen, err := views(s.ctx, s.store, s.users)
	s.must("read the records", err)
	known, err := s.store.Users(s.ctx, s.users)
	s.must("users", err)

	deadlines := []modelDeadline{}
	for _, z := range index.Val() {
		deadlines = append(deadlines, modelDeadline{z.Member.(string), int64(z.Score)})
	}
	if want := m.deadlines(); !reflect.DeepEqual(want, deadlines) {
		return "deadline index (-want +got):\n" + cmp.Diff(want, deadlines, cmp.AllowUnexported(modelDeadline{}))
	}
	if n, _ := events.Int64(); n != m.n {
		return fmt.Sprintf("%d events were made, want %d", n, m.n)
	}
	if notes.Val() != 0 {
		return fmt.Sprintf("%d notes in quarantine", notes.Val())
	}
	if n := len(outbox.Val()); n != len(m.outbox) {
		return fmt.Sprintf("%d entries in the outbox, want %d", n, len(m.outbox))
	}
	for i, msg := range outbox.Val() {
		want := m.outbox[i].Entry
		packed := msg.Values["e"].(string)
		if s.compared[want.N] == packed {
			continue
		}
		got, err := unpack(packed)
		if err != nil {
			return fmt.Sprintf("outbox entry %q: %v", packed, err)
		}
		if diff := diffEntries([]Entry{want}, []Entry{got}); diff != "" {
			return "outbox (-want +got):\n" + diff
		}
		s.compared[want.N] = packed
	}
	elapsed := time.Since(s.began)
	for i, id := range s.users {
		if want := m.view(id, now); !reflect.DeepEqual(want, seen[i]) {
			return "record of " + id + " (-want +got):\n" + cmp.Diff(want, seen[i])
		}
		u := m.user(id, now)
		if u.saved == 0 && !s.enact {
			continue // forgotten, but the record is still there
		}
		if want := m.known(id, now); !reflect.DeepEqual(want, known[i]) {
			return "user (-want +got):\n" + cmp.Diff(want, known[i])
		}
		if diff := u.recordLife(records[i].Val(), elapsed); diff != "" {
			return "record of " + id + ": " + diff
		}
		for j, name := range s.names {
			if diff := s.leaseLife(u.session(name), leases[i][j].Val(), elapsed); diff != "" {
				return "lease of " + id + "/" + name + ": " + diff
			}
		}
	}
	return ""
}

// Times to live as PTTL tells them.
const (
	noKey  = time.Duration(-2)
	noLife = time.Duration(-1)
)

// recordLife checks a user record's time to live, when the scenario runs for elapsed by Redis's own clock.
func (u *modelUser) recordLife(got, elapsed time.Duration) string {
	switch {
	case u.saved == 0:
		if got != noKey {
			return fmt.Sprintf("it is there, with %v to live", got)
		}
	case len(u.live) > 0:
		if got != noLife {
			return fmt.Sprintf("the user is online, and it has %v to live", got)
		}
	default:
		return withinLife(time.Duration(u.forgottenAt()-u.saved)*time.Millisecond, got, elapsed)
	}
	return ""
}

// leaseLife checks a lease's time to live.
func (s *scenario) leaseLife(l *modelSession, got, elapsed time.Duration) string {
	if l == nil || !s.leases {
		if got != noKey {
			return fmt.Sprintf("it is there, with %v to live", got)
		}
		return ""
	}
	whole := max(time.Duration(l.due-l.leased)*time.Millisecond, time.Millisecond)
	if got == noKey && (l.due <= s.now || whole <= elapsed+lifeSlack) {
		return ""
	}
	return withinLife(whole, got, elapsed)
}

// lifeSlack is what Redis's clocks may differ by: it reads a cached one for the time to live.
const lifeSlack = time.Second

func withinLife(whole, got, elapsed time.Duration) string {
	if got > whole+lifeSlack || got < whole-elapsed-lifeSlack {
		return fmt.Sprintf("%v to live, of %v, after at most %v", got, whole, elapsed)
	}
	return ""
}

// finish ends a scenario: the state is compared, in half of them once more after all sessions ran out, and
// the outbox is read to its end.
func (s *scenario) finish() {
	s.compareAll()
	if s.rng.IntN(2) == 0 {
		s.moveTo(s.now + endMemory)
		for n := 0; len(s.m.deadlines()) > 0; n++ {
			s.look(0)
			s.look(1)
			s.claim(n % 2)
			s.claim(1 - n%2)
		}
		s.compareAll()
	}
	for s.next(0, 1000) > 0 {
	}
	got, _, err := s.relays[0].TakeOver(s.ctx, 0, 0, nil, "", 100_000)
	s.must("take over", err)
	s.compareEntries("relay takes over", 0, s.m.takeOver(0, 100_000), got)
	if len(got) > 0 {
		s.acknowledge(0, got)
	}
	s.compareAll()
	users, err := s.store.Users(s.ctx, s.users)
	s.must("users", err)
	for i, id := range s.users {
		if err := s.ledger.check(id, users[i]); err != nil {
			s.wrongf("%v", err)
		}
	}
	if s.ledger.n != s.m.n {
		s.wrongf("%d events came out of the outbox, want %d", s.ledger.n, s.m.n)
	}
}

// when counts what is not a step of its own.
func (s *scenario) when(is bool, what string) {
	if is {
		s.tally[what]++
	}
}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

// someBeats makes up to most beats of random sessions, often one session more than once.
func (s *scenario) someBeats(most int) batch[presence.Beat] {
	var b batch[presence.Beat]
	for range 1 + s.rng.IntN(most) {
		beat := presence.Beat{
			User: pick(s.rng, s.users...), Session: pick(s.rng, s.names...), Traceparent: s.trace(),
			TTL:   seconds(pick(s.rng, 5, 10, 45, 45, 60, 3600, 5+s.rng.IntN(3596))),
			Grace: *seconds(pick(s.rng, 0, 0, 0, 1, 5, 600, s.rng.IntN(601))),
		}
		beat.Seq = s.seq(beat.User, beat.Session)
		if !s.plain || s.rng.IntN(6) == 0 {
			s.groupsAndMeta(&beat)
		}
		b.Items = append(b.Items, beat)
		b.Ages = append(b.Ages, s.age(beat.User, beat.Session, (*beat.TTL+beat.Grace).Milliseconds()))
	}
	return b
}

// groupsAndMeta keeps, replaces or clears them.
func (s *scenario) groupsAndMeta(b *presence.Beat) {
	switch s.rng.IntN(8) {
	case 0:
		b.Groups = []string{}
	case 1:
		b.Groups = []string{"g" + strconv.Itoa(s.rng.IntN(3)), "h|~"}
	}
	b.Meta = pick(s.rng, nil, nil, nil, nil, json.RawMessage("{}"),
		json.RawMessage(`{"n":`+strconv.Itoa(s.rng.IntN(9))+`,"t":"a, \"b\"\n\u20ac é %s"}`))
}

func (s *scenario) someLeaves(most int) batch[presence.Leave] {
	var b batch[presence.Leave]
	for range 1 + s.rng.IntN(most) {
		l := presence.Leave{User: pick(s.rng, s.users...), Session: pick(s.rng, s.names...), Traceparent: s.trace()}
		l.Seq = s.seq(l.User, l.Session)
		b.Items = append(b.Items, l)
		b.Ages = append(b.Ages, s.age(l.User, l.Session, 5000))
	}
	return b
}

func (s *scenario) trace() string {
	if s.rng.IntN(4) > 0 {
		return ""
	}
	return fmt.Sprintf("00-%016x%016x-%016x-01", s.rng.Uint64(), s.rng.Uint64(), s.rng.Uint64())
}

// seq makes no seq, or one around the session's last one.
func (s *scenario) seq(user, session string) *int64 {
	if s.rng.IntN(3) > 0 {
		return nil
	}
	last := s.rng.Int64N(10)
	if _, seq, _ := s.m.user(user, s.now).prior(session); seq != nil {
		last = *seq
	}
	seq := pick(s.rng, last+1, last+1, last+1, last+2, last, last-1, 0, s.rng.Int64N(20))
	if s.rng.IntN(50) == 0 {
		seq = presence.MaxSeq - s.rng.Int64N(2)
	}
	return new(min(max(seq, 0), presence.MaxSeq))
}

// age makes an age in ms: mostly none, else around where the session's last instant or the deadline is.
func (s *scenario) age(user, session string, lifetime int64) int64 {
	around := s.rng.Int64N(3) - 1
	switch s.rng.IntN(12) {
	case 0:
		return s.rng.Int64N(5)
	case 1, 2:
		return s.rng.Int64N(5000)
	case 3:
		if last, _, known := s.m.user(user, s.now).prior(session); known {
			return max(s.now-last+around, 0)
		}
	case 4:
		return max(lifetime+around, 0)
	case 5:
		return s.rng.Int64N(lifetime + 1)
	case 6:
		return pick(s.rng, 600_000, endMemory, recordMemory)
	}
	return 0
}
