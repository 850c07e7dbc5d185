package eventlog_test

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
)

var start = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func step(replay, delivery int, status eventlog.Status, ms int) eventlog.Step {
	return eventlog.Step{
		Status: status, At: start.Add(time.Duration(ms) * time.Millisecond),
		Attempt: eventlog.Attempt{Replay: replay, Delivery: delivery},
	}
}

func statuses(history []eventlog.Step) []eventlog.Status {
	var out []eventlog.Status
	for _, s := range history {
		out = append(out, s.Status)
	}
	return out
}

func TestMergeOrdersByAttemptAndRank(t *testing.T) {
	t.Parallel()
	detected, queued := step(0, 0, eventlog.Detected, 0), step(0, 0, eventlog.Queued, 1)
	processing, done := step(0, 1, eventlog.Processing, 2), step(0, 1, eventlog.Done, 3)
	tests := []struct {
		name    string
		history []eventlog.Step
		steps   []eventlog.Step
		want    []eventlog.Status
		changed bool
	}{
		{"first write", nil, []eventlog.Step{detected, queued}, []eventlog.Status{"detected", "queued"}, true},
		{"nothing", nil, nil, nil, false},
		{
			"a late queued does not hide a done",
			[]eventlog.Step{detected, processing, done},
			[]eventlog.Step{detected, queued},
			[]eventlog.Status{"detected", "queued", "processing", "done"},
			true,
		},
		{
			"the same again",
			[]eventlog.Step{detected, queued},
			[]eventlog.Step{detected, queued},
			[]eventlog.Status{"detected", "queued"},
			false,
		},
		{
			"a failed delivery opens the next attempt",
			[]eventlog.Step{detected, queued, processing, step(0, 1, eventlog.Failed, 3)},
			[]eventlog.Step{step(0, 2, eventlog.Processing, 4)},
			[]eventlog.Status{"detected", "queued", "processing", "failed", "processing"},
			true,
		},
		{
			"an end of the first delivery that comes after the second one began",
			[]eventlog.Step{detected, queued, step(0, 2, eventlog.Processing, 4)},
			[]eventlog.Step{step(0, 1, eventlog.Failed, 3)},
			[]eventlog.Status{"detected", "queued", "failed", "processing"},
			true,
		},
		{
			"a replay comes after every delivery of the original",
			[]eventlog.Step{detected, step(1, 0, eventlog.Queued, 9)},
			[]eventlog.Step{step(0, 10, eventlog.Dead, 8)},
			[]eventlog.Status{"detected", "dead", "queued"},
			true,
		},
		{
			"dead after failed in one attempt",
			[]eventlog.Step{detected, step(0, 9, eventlog.Dead, 5)},
			[]eventlog.Step{step(0, 9, eventlog.Failed, 4)},
			[]eventlog.Status{"detected", "failed", "dead"},
			true,
		},
		{
			"what was applied is done, also when its message was given up",
			[]eventlog.Step{detected, done},
			[]eventlog.Step{step(0, 1, eventlog.Dead, 5)},
			[]eventlog.Status{"detected", "dead", "done"},
			true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			before := slices.Clone(tt.history)
			got, changed := eventlog.Merge(tt.history, tt.steps)
			if diff := cmp.Diff(tt.want, statuses(got)); diff != "" || changed != tt.changed {
				t.Errorf("changed = %v, want %v; statuses (-want +got):\n%s", changed, tt.changed, diff)
			}
			if diff := cmp.Diff(before, tt.history); diff != "" {
				t.Errorf("Merge changed its argument (-before +after):\n%s", diff)
			}
		})
	}
}

func TestMergeKeepsTheEarliestReport(t *testing.T) {
	t.Parallel()
	early, late := step(0, 0, eventlog.Queued, 10), step(0, 0, eventlog.Queued, 20)
	for _, order := range [][]eventlog.Step{{early, late}, {late, early}} {
		got, _ := eventlog.Merge(nil, order)
		if diff := cmp.Diff([]eventlog.Step{early}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
}

func TestMergeKeepsMillisecondsInUTC(t *testing.T) {
	t.Parallel()
	s := eventlog.Step{Status: eventlog.Done, At: start.Add(1999 * time.Microsecond).In(time.FixedZone("", 3600))}
	got, _ := eventlog.Merge(nil, []eventlog.Step{s})
	if want := start.Add(time.Millisecond); got[0].At != want {
		t.Errorf("at = %v, want %v", got[0].At, want)
	}
	if again, changed := eventlog.Merge(got, []eventlog.Step{s}); changed {
		t.Errorf("the same step again changed the history to %v", again)
	}
}

func TestMergeCutsALongDetail(t *testing.T) {
	t.Parallel()
	s := step(0, 1, eventlog.Failed, 0)
	s.Detail = "x" + strings.Repeat("é", eventlog.MaxDetail) + "\xff"
	got, _ := eventlog.Merge(nil, []eventlog.Step{s})
	if d := got[0].Detail; len(d) > eventlog.MaxDetail || len(d) < eventlog.MaxDetail-utf8.UTFMax || !utf8.ValidString(d) {
		t.Errorf("detail has %d bytes, valid UTF-8 %v; want at most %d", len(d), utf8.ValidString(d), eventlog.MaxDetail)
	}
	if _, changed := eventlog.Merge(got, []eventlog.Step{s}); changed {
		t.Error("the same step again changed the history")
	}
}

// FuzzMerge checks the properties that the stores and the writers rely on, over random steps that arrive in
// random order, in random groups, and some of them twice.
func FuzzMerge(f *testing.F) {
	for seed := range uint64(32) {
		f.Add(seed, uint8(seed*8))
	}
	f.Fuzz(func(t *testing.T, seed uint64, size uint8) {
		r := rand.New(rand.NewPCG(seed, 0))
		steps := randomSteps(r, int(size))
		want, _ := eventlog.Merge(nil, steps)

		if !slices.IsSortedFunc(want, byAttempt) {
			t.Fatalf("history is not in the order of its attempts: %v", want)
		}
		if len(want) > eventlog.MaxHistory {
			t.Fatalf("history has %d steps, want at most %d", len(want), eventlog.MaxHistory)
		}
		if len(steps) > 0 {
			newest := slices.MaxFunc(steps, byAttempt).Attempt
			last := want[len(want)-1]
			if last.Attempt != newest || last.Status != strongest(steps, newest) {
				t.Fatalf("status is %s of attempt %v, want %s of %v", last.Status, last.Attempt, strongest(steps, newest), newest)
			}
		}

		for range 4 {
			got, last := []eventlog.Step(nil), eventlog.Step{}
			for _, group := range shuffledGroups(r, steps) {
				next, changed := eventlog.Merge(got, group)
				if changed == same(got, next) {
					t.Fatalf("changed = %v, but the history went from %v to %v", changed, got, next)
				}
				if newest := next[len(next)-1]; before(newest, last) {
					t.Fatalf("status went back from %v to %v", last, newest)
				} else {
					last = newest
				}
				if again, changed := eventlog.Merge(next, group); changed {
					t.Fatalf("the same write again changed the history from %v to %v", next, again)
				}
				got = next
			}
			if !same(want, got) {
				t.Fatalf("another order gives another history (-want +got):\n%s", cmp.Diff(want, got))
			}
		}
	})
}

func same(a, b []eventlog.Step) bool {
	return slices.EqualFunc(a, b, func(a, b eventlog.Step) bool { return cmp.Equal(a, b) })
}

var ladder = []eventlog.Status{"detected", "queued", "processing", "failed", "dead", "done"}

func randomSteps(r *rand.Rand, n int) []eventlog.Step {
	var steps []eventlog.Step
	for range n {
		s := step(r.IntN(3), r.IntN(12), ladder[r.IntN(len(ladder))], 0)
		s.At = start.Add(time.Duration(r.IntN(5000)) * time.Microsecond)
		s.Detail = []string{"", "a", "b"}[r.IntN(3)]
		steps = append(steps, s)
	}
	return steps
}

func shuffledGroups(r *rand.Rand, steps []eventlog.Step) [][]eventlog.Step {
	all := slices.Concat(steps, steps[:len(steps)/3])
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	var groups [][]eventlog.Step
	for len(all) > 0 {
		n := 1 + r.IntN(min(5, len(all)))
		groups, all = append(groups, all[:n]), all[n:]
	}
	return groups
}

func byAttempt(a, b eventlog.Step) int { return a.Attempt.Compare(b.Attempt) }

func before(a, b eventlog.Step) bool {
	if c := byAttempt(a, b); c != 0 {
		return c < 0
	}
	return slices.Index(ladder, a.Status) < slices.Index(ladder, b.Status)
}

func strongest(steps []eventlog.Step, attempt eventlog.Attempt) eventlog.Status {
	best := -1
	for _, s := range steps {
		if s.Attempt == attempt {
			best = max(best, slices.Index(ladder, s.Status))
		}
	}
	return ladder[best]
}

func TestRecordMergeKeepsTheNewestCopyOfAnEvent(t *testing.T) {
	t.Parallel()
	first := presence.Event{ID: "x", Type: presence.UserOnline, Body: presence.Body{Epoch: 5, Life: "a"}}
	again := presence.Event{ID: "x", Type: presence.UserOnline, Body: presence.Body{Epoch: 9, Life: "b"}}
	for _, order := range [][]presence.Event{{first, again}, {again, first}} {
		record := eventlog.Record{Event: order[0]}
		record, _ = record.Merge(eventlog.Update{Event: order[1]})
		if record.Event.Epoch != 9 || record.Event.Life != "b" {
			t.Errorf("after epochs %d, %d the record has %d of life %s, want 9 of b",
				order[0].Epoch, order[1].Epoch, record.Event.Epoch, record.Event.Life)
		}
		if _, changed := record.Merge(eventlog.Update{Event: order[0]}); changed {
			t.Error("a copy that is already there changed the record")
		}
		if _, changed := record.Merge(eventlog.Update{Event: presence.Event{ID: "x", Body: presence.Body{Epoch: 99}}}); changed {
			t.Error("an update without an event changed the event")
		}
	}
}

func TestRecordStatus(t *testing.T) {
	t.Parallel()
	var r eventlog.Record
	if r.Status() != eventlog.Detected || r.LastReplay() != 0 {
		t.Errorf("empty record: %s, replay %d; want detected, 0", r.Status(), r.LastReplay())
	}
	r.History, _ = eventlog.Merge(nil, []eventlog.Step{step(2, 1, "done", 1), step(0, 3, "dead", 2)})
	if r.Status() != eventlog.Done || r.LastReplay() != 2 {
		t.Errorf("%s, replay %d; want done, 2", r.Status(), r.LastReplay())
	}
}

func TestDocumentRoundTrip(t *testing.T) {
	t.Parallel()
	for _, e := range []presence.Event{
		{
			ID: presence.EventID("ada", "web", presence.UserOffline, 7), Type: presence.UserOffline, Subject: presence.Subject{User: "ada", Session: "web"},
			Body: presence.Body{
				Epoch: 8, Reason: presence.ReasonExpired, Deadline: start, DetectedAt: start.Add(3 * time.Millisecond), Groups: []string{"g"}, Sessions: []presence.EventSession{{Session: "b", StartEpoch: 1, TTLSeconds: 45, GraceSeconds: 5}},
				Meta: json.RawMessage(`{"a":1}`), LastSeen: start.Add(-time.Second), Life: "l", Generation: 2,
			},
			Traceparent: "00-1-2-01",
		},
		{ID: presence.EventID("bob", "", presence.UserOnline, 1), Type: presence.UserOnline, Subject: presence.Subject{User: "bob"}, Body: presence.Body{Epoch: 1, DetectedAt: start}},
		{ID: presence.KeyEventID("a\nb", 1, 1), Type: presence.KeyExpired, Subject: presence.Subject{Key: "a\nb"}, Body: presence.Body{Epoch: 1, Reason: presence.ReasonExpired, DetectedAt: start}},
	} {
		want := eventlog.Record{Event: e}
		want.History, _ = eventlog.Merge(nil, []eventlog.Step{step(0, 0, "detected", 0), step(0, 1, "done", 2)})
		document, err := eventlog.NewDocument(want)
		if err != nil {
			t.Fatal(err)
		}
		text, err := eventlog.Marshal(document)
		if err != nil {
			t.Fatal(err)
		}
		var back eventlog.Document
		if err := eventlog.Unmarshal(text, &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, back.Record()); diff != "" {
			t.Errorf("(-want +got):\n%s\n%s", diff, text)
		}
		if back.Status != eventlog.Done || back.PK != presence.PartitionKey(e.User+e.Key) {
			t.Errorf("status %s, pk %s", back.Status, back.PK)
		}
	}
	if _, err := eventlog.NewDocument(eventlog.Record{Event: presence.Event{ID: "junk"}}); err != eventlog.ErrID {
		t.Errorf("document of a junk id: %v, want ErrID", err)
	}
}

func TestContinuation(t *testing.T) {
	t.Parallel()
	token := eventlog.Continuation("ada", "some position")
	if got, err := eventlog.Position("ada", token); got != "some position" || err != nil {
		t.Errorf("position = %q, %v", got, err)
	}
	if strings.Trim(token, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		t.Errorf("token %q is not URL-safe", token)
	}
	if _, err := eventlog.Position("bob", token); err != eventlog.ErrContinuation {
		t.Errorf("token of another user: %v, want ErrContinuation", err)
	}
	for i := range token {
		for _, c := range []byte("A1_=/ ") {
			changed := token[:i] + string(c) + token[i+1:]
			if _, err := eventlog.Position("ada", changed); changed != token && err != eventlog.ErrContinuation {
				t.Errorf("token %q, changed to %q: %v, want ErrContinuation", token, changed, err)
			}
		}
		if _, err := eventlog.Position("ada", token[:i]); err != eventlog.ErrContinuation {
			t.Errorf("token cut to %q: %v, want ErrContinuation", token[:i], err)
		}
	}
}

// TestChronological: whatever the order in which steps were reported, and whatever the clocks of who reported them, the
// history is oldest first, and the status is that of the newest attempt.
func TestChronological(t *testing.T) {
	t.Parallel()
	// A worker had the message before the relay was told that it was queued, and its clock is behind.
	early, _ := eventlog.Merge(nil, []eventlog.Step{
		step(0, 0, "detected", 10), step(0, 0, "queued", 14), step(0, 1, "processing", 12), step(0, 1, "done", 13),
	})
	r := eventlog.Record{History: early}
	if got, want := statuses(r.Chronological()), []eventlog.Status{"detected", "processing", "done", "queued"}; !slices.Equal(got, want) || r.Status() != eventlog.Done {
		t.Errorf("%v, status %s; want %v, done", got, r.Status(), want)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		history, _ := eventlog.Merge(nil, randomSteps(random, random.IntN(60)))
		r := eventlog.Record{History: history}
		got := r.Chronological()
		if !slices.IsSortedFunc(got, func(a, b eventlog.Step) int {
			return cmp2(a.At.Compare(b.At), a.Attempt.Compare(b.Attempt))
		}) || len(got) != len(history) {
			t.Fatalf("not oldest first: %v", got)
		}
		if !same(r.History, history) {
			t.Fatal("the order of the attempts was changed")
		}
	}
}

// cmp2 is the first of two comparisons that is not equal.
func cmp2(a, b int) int {
	if a != 0 {
		return a
	}
	return b
}

// TestReplayThatIsRejected: the end of a replay counts, whether it was delivered before its history was written or after.
func TestReplayThatIsRejected(t *testing.T) {
	t.Parallel()
	first := []eventlog.Step{step(0, 0, "detected", 0), step(0, 0, "queued", 1), step(0, 1, "processing", 2), step(0, 1, "dead", 3)}
	replayed, rejected := []eventlog.Step{step(1, 0, "queued", 10)}, []eventlog.Step{step(1, 1, "processing", 11), step(1, 1, "dead", 12)}
	for _, order := range [][][]eventlog.Step{{first, replayed, rejected}, {first, rejected, replayed}, {rejected, replayed, first}} {
		var history []eventlog.Step
		for _, steps := range order {
			history, _ = eventlog.Merge(history, steps)
		}
		if r := (eventlog.Record{History: history}); r.Status() != eventlog.Dead || r.LastReplay() != 1 || len(history) != 7 {
			t.Errorf("status %s of replay %d: %v", r.Status(), r.LastReplay(), history)
		}
	}
}

// TestReduced leaves out what a store may refuse, and says so until the event is written whole again.
func TestReduced(t *testing.T) {
	t.Parallel()
	e := presence.Event{
		ID: presence.EventID("ada", "web", presence.UserOnline, 7), Type: presence.UserOnline, Subject: presence.Subject{User: "ada", Session: "web"},
		Body: presence.Body{
			Epoch: 8, DetectedAt: start, Groups: []string{"g"}, Sessions: []presence.EventSession{{Session: "web"}},
			Meta: json.RawMessage(`{"a":1}`),
		},
	}
	d, err := eventlog.NewDocument(eventlog.Record{Event: e})
	if err != nil {
		t.Fatal(err)
	}
	one, two := d.Reduced(1, "too deep"), d.Reduced(2, "too deep")
	if d.Reduced(0, "").Omitted != "" || one.Meta != nil || one.Groups == nil || one.Omitted != "meta: too deep" {
		t.Errorf("once: %+v", one)
	}
	if two.Meta != nil || two.Groups != nil || two.Sessions != nil || two.Omitted != "meta, groups, sessions: too deep" {
		t.Errorf("twice: %+v", two)
	}
	again, changed, err := one.Merge(eventlog.Update{Event: e, Steps: []eventlog.Step{step(0, 1, "done", 1)}})
	if err != nil || !changed || again.Omitted != one.Omitted || again.Meta != nil {
		t.Errorf("merged: %+v, %v", again, err)
	}
	e.Epoch = 9
	whole, _, err := one.Merge(eventlog.Update{Event: e})
	if err != nil || whole.Omitted != "" || whole.Meta == nil {
		t.Errorf("made again: %+v, %v", whole, err)
	}
}

// TestOverlay changes what this version knows, and nothing else.
func TestOverlay(t *testing.T) {
	t.Parallel()
	type known struct {
		A int    `json:"a"`
		B string `json:"b,omitempty"`
	}
	for _, tt := range []struct{ stored, want string }{
		{`{"a":1,"b":"x"}`, `{"a":2}`},
		{`{"n":1e309,"a":1,"z":{"a":1,"a":0.10},"b":"x","s":"<\u00e9>"}`, `{"n":1e309,"a":2,"z":{"a":1,"a":0.10},"s":"<é>"}`},
		{`{"b":"x"}`, `{"a":2}`},
	} {
		got, err := eventlog.Overlay([]byte(tt.stored), known{1, "x"}, known{2, ""})
		if err != nil || string(got) != tt.want {
			t.Errorf("%s became %s, want %s; %v", tt.stored, got, tt.want, err)
		}
	}
	same, err := eventlog.Overlay([]byte(`{"a":1.0,"b":"x"}`), known{1, "x"}, known{1, "x"})
	if err != nil || string(same) != `{"a":1.0,"b":"x"}` {
		t.Errorf("what did not change became %s: %v", same, err)
	}
	for _, junk := range []string{``, `[]`, `{"a":`, `null`} {
		if got, err := eventlog.Overlay([]byte(junk), known{}, known{1, ""}); err == nil {
			t.Errorf("%q became %s", junk, got)
		}
	}
}
