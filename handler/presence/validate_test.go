package presence_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

func TestCheckID(t *testing.T) {
	t.Parallel()
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._~:@|+=-"
	for b := range 256 {
		id := "a" + string([]byte{byte(b)})
		if wrong := presence.CheckID(id); (wrong == "") != strings.Contains(alphabet, id[1:]) {
			t.Errorf("%q: %q", id, wrong)
		}
	}
	for id, want := range map[string]string{
		"": "must not be empty", ".": "must not be . or ..", "..": "must not be . or ..", "...": "", "a": "", "-": "", "é": "characters",
		strings.Repeat("x", 128): "", strings.Repeat("x", 129): "at most 128 characters, has 129",
	} {
		if got := presence.CheckID(id); got != want && (want == "" || !strings.Contains(got, want)) {
			t.Errorf("%q: %q, want %q", id, got, want)
		}
	}
}

// taking is a live state that keeps what reaches it.
type taking struct {
	beats   []presence.Beat
	leaves  []presence.Leave
	changes map[string]presence.Change
	left    map[string]presence.LeaveOutcome
	err     error
}

func (s *taking) Heartbeats(_ context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error) {
	s.beats = append(s.beats, beats...)
	outcomes := make([]presence.BeatOutcome, len(beats))
	for i, b := range beats {
		outcomes[i] = presence.BeatOutcome{Change: presence.ChangeRenewed, Status: presence.Online}
		if c, ok := s.changes[b.User]; ok {
			outcomes[i].Change = c
		}
	}
	return outcomes, s.err
}

func (s *taking) Leaves(_ context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error) {
	s.leaves = append(s.leaves, leaves...)
	outcomes := make([]presence.LeaveOutcome, len(leaves))
	for i, l := range leaves {
		outcomes[i] = cmp.Or(s.left[l.User], presence.Left)
	}
	return outcomes, s.err
}

func (s *taking) Users(_ context.Context, ids []string) ([]*presence.User, error) {
	return make([]*presence.User, len(ids)), s.err
}

func seconds(n int) *time.Duration { d := time.Duration(n) * time.Second; return &d }

func number(n int64) *int64 { return &n }

// pointers are the fields that an error names.
func pointers(err error) []string {
	var e *fault.Error
	if !errors.As(err, &e) {
		return nil
	}
	var all []string
	for _, f := range e.Fields {
		all = append(all, f.Pointer)
	}
	return all
}

func TestBeatsAreChecked(t *testing.T) {
	t.Parallel()
	groups := func(n int) []string {
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprint("g", i)
		}
		return names
	}
	sized := func(n int) json.RawMessage {
		return json.RawMessage(`{ "a" : "` + strings.Repeat("x", n-len(`{"a":""}`)) + `" }`)
	}
	for _, tt := range []struct {
		name  string
		beat  presence.Beat
		wrong []string
	}{
		{"smallest", presence.Beat{}, nil},
		{"least", presence.Beat{TTL: seconds(5), Seq: number(0), Groups: []string{}, Meta: json.RawMessage("{}")}, nil},
		{"most", presence.Beat{TTL: seconds(3600), Grace: 600 * time.Second, Seq: number(1<<53 - 1), Groups: groups(16), Meta: sized(1024)}, nil},
		{"no_session", presence.Beat{Session: "-none-"}, []string{"/session"}},
		{"ttl_below", presence.Beat{TTL: seconds(4)}, []string{"/ttlSeconds"}},
		{"ttl_above", presence.Beat{TTL: seconds(3601)}, []string{"/ttlSeconds"}},
		{"ttl_fraction", presence.Beat{TTL: func() *time.Duration { d := 5500 * time.Millisecond; return &d }()}, []string{"/ttlSeconds"}},
		{"grace_below", presence.Beat{Grace: -time.Second}, []string{"/graceSeconds"}},
		{"grace_above", presence.Beat{Grace: 601 * time.Second}, []string{"/graceSeconds"}},
		{"seq_below", presence.Beat{Seq: number(-1)}, []string{"/seq"}},
		{"seq_above", presence.Beat{Seq: number(1 << 53)}, []string{"/seq"}},
		{"17_groups", presence.Beat{Groups: groups(17)}, []string{"/groups"}},
		{"bad_groups", presence.Beat{Groups: []string{"a", "", "a", "b c"}}, []string{"/groups/1", "/groups/2", "/groups/3"}},
		{"meta_too_large", presence.Beat{Meta: sized(1025)}, []string{"/meta"}},
		{"meta_array", presence.Beat{Meta: json.RawMessage(" []")}, []string{"/meta"}},
		{"meta_not_json", presence.Beat{Meta: json.RawMessage("{")}, []string{"/meta"}},
		{"meta_empty", presence.Beat{Meta: json.RawMessage("")}, []string{"/meta"}},
		{
			"all",
			presence.Beat{Session: "-none-", TTL: seconds(0), Grace: -1, Seq: number(-1), Groups: groups(17), Meta: json.RawMessage("7")},
			[]string{"/session", "/ttlSeconds", "/graceSeconds", "/groups", "/seq", "/meta"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			beat := tt.beat
			beat.User = "ann"
			switch beat.Session {
			case "":
				beat.Session = presence.DefaultSession
			case "-none-":
				beat.Session = ""
			}
			live := &taking{}
			tracker := presence.NewTracker(live, records{}, 30*time.Second)
			_, err := tracker.Heartbeat(t.Context(), beat)
			if got := pointers(err); !slices.Equal(got, tt.wrong) || (err != nil) != (tt.wrong != nil) {
				t.Fatalf("%v: %q, want %q", err, got, tt.wrong)
			}
			if (len(live.beats) == 1) != (err == nil) {
				t.Fatalf("%d beats reached the store", len(live.beats))
			}
			if err != nil && fault.KindOf(err) != fault.Invalid {
				t.Errorf("kind %d", fault.KindOf(err))
			}
			if err == nil && beat.TTL == nil && *live.beats[0].TTL != 30*time.Second {
				t.Errorf("the default ttl is %s, want the tracker's", *live.beats[0].TTL)
			}
			if err == nil && beat.Meta != nil && strings.Contains(string(live.beats[0].Meta), " ") {
				t.Errorf("meta %s is not compact", live.beats[0].Meta)
			}
		})
	}
}

func TestHeartbeatsCount(t *testing.T) {
	t.Parallel()
	live := &taking{changes: map[string]presence.Change{
		"full": presence.ChangeFull, "late": presence.ChangeStale, "kept": presence.ChangeDeferred, "new": presence.ChangeOnline, "more": presence.ChangeStarted,
	}}
	tracker := presence.NewTracker(live, records{}, presence.DefaultTTL)
	beat := func(user string, ttl int) presence.Beat {
		return presence.Beat{User: user, Session: "s", TTL: seconds(ttl)}
	}
	got, err := tracker.Heartbeats(t.Context(), []presence.Beat{
		beat("new", 300), beat("b b", 5), beat("full", 90), beat("late", 90), beat("kept", 90), beat("more", 120), beat("old", 60), beat("old", 4),
	})
	if err != nil || got.Accepted != 3 || got.Stale != 1 || got.Deferred != 1 || len(got.Rejected) != 3 || got.BeatAfter != 20*time.Second {
		t.Fatalf("%+v, %v", got, err)
	}
	want := map[int]fault.Kind{1: fault.Invalid, 7: fault.Invalid, 2: fault.Conflict}
	for _, r := range got.Rejected {
		if kind, ok := want[r.Index]; !ok || fault.KindOf(r.Err) != kind {
			t.Errorf("%d: %v", r.Index, r.Err)
		}
		delete(want, r.Index)
	}
	if len(want) > 0 {
		t.Errorf("not rejected: %v", want)
	}
	if _, err := tracker.Heartbeat(t.Context(), beat("full", 45)); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "32") {
		t.Errorf("a full user: %v", err)
	}
	empty, err := tracker.Heartbeats(t.Context(), nil)
	if err != nil || empty.BeatAfter != 15*time.Second || len(empty.Rejected) != 0 {
		t.Errorf("no beats: %+v, %v", empty, err)
	}
}

func TestLeavesAreChecked(t *testing.T) {
	t.Parallel()
	live := &taking{}
	tracker := presence.NewTracker(live, records{}, presence.DefaultTTL)
	got, err := tracker.Leaves(t.Context(), []presence.Leave{
		{User: "ann", Session: "s"}, {Session: "s"}, {User: "ann"}, {User: "bob", Session: "s", Seq: number(-1)}, {User: "bob", Session: "s", Seq: number(7)},
	})
	rejected := got.Rejected
	if err != nil || len(rejected) != 3 || got.Deferred != 0 || len(live.leaves) != 2 || live.leaves[1].User != "bob" {
		t.Fatalf("%+v, %v; applied %+v", got, err, live.leaves)
	}
	for i, want := range []string{"/user", "/session", "/seq"} {
		if got := pointers(rejected[i].Err); !slices.Equal(got, []string{want}) || rejected[i].Index != i+1 {
			t.Errorf("%d: %q, want %s", rejected[i].Index, got, want)
		}
	}
	if _, err := tracker.Leave(t.Context(), presence.Leave{User: "a b", Session: ""}); !slices.Equal(pointers(err), []string{"/user", "/session"}) {
		t.Errorf("%v", err)
	}
	live.leaves = nil
	if got, err := tracker.Leaves(t.Context(), []presence.Leave{{}}); err != nil || len(got.Rejected) != 1 || live.leaves != nil {
		t.Errorf("nothing good: %v, %v, %v", got, err, live.leaves)
	}
}

// TestLeaveOutcomes: the caller learns what became of a leave, and of how many in a bulk that they are only kept.
func TestLeaveOutcomes(t *testing.T) {
	t.Parallel()
	live := &taking{left: map[string]presence.LeaveOutcome{
		"kept": presence.LeaveDeferred, "late": presence.LeaveStale, "grace": presence.Leaving, "nobody": presence.LeaveUnknown,
	}}
	tracker := presence.NewTracker(live, records{}, presence.DefaultTTL)
	var bulk []presence.Leave
	for user, want := range map[string]presence.LeaveOutcome{
		"ann": presence.Left, "kept": presence.LeaveDeferred, "late": presence.LeaveStale, "grace": presence.Leaving, "nobody": presence.LeaveUnknown,
	} {
		one := presence.Leave{User: user, Session: "s"}
		bulk = append(bulk, one, one)
		if got, err := tracker.Leave(t.Context(), one); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", user, got, err, want)
		}
	}
	if got, err := tracker.Leaves(t.Context(), append(bulk, presence.Leave{})); got.Deferred != 2 || len(got.Rejected) != 1 || err != nil {
		t.Errorf("bulk: %+v, %v", got, err)
	}
}

// TestTally: every beat and leave that the state was asked to apply is in one count, whichever call brought it.
func TestTally(t *testing.T) {
	t.Parallel()
	live := &taking{
		changes: map[string]presence.Change{
			"new": presence.ChangeOnline, "more": presence.ChangeStarted, "late": presence.ChangeStale, "kept": presence.ChangeDeferred, "full": presence.ChangeFull,
			"next": presence.ChangeLater,
		},
		left: map[string]presence.LeaveOutcome{
			"late": presence.LeaveStale, "kept": presence.LeaveDeferred, "grace": presence.Leaving, "nobody": presence.LeaveUnknown, "next": presence.LeaveLater,
		},
	}
	tracker := presence.NewTracker(live, records{}, presence.DefaultTTL)
	want := presence.Tally{
		Beats: map[presence.Change]int64{
			presence.ChangeOnline: 0, presence.ChangeStarted: 0, presence.ChangeRenewed: 0, presence.ChangeStale: 0, presence.ChangeDeferred: 0, presence.ChangeFull: 0,
			presence.ChangeLater: 0,
		},
		Leaves: map[presence.LeaveOutcome]int64{
			presence.Left: 0, presence.Leaving: 0, presence.LeaveStale: 0, presence.LeaveUnknown: 0, presence.LeaveDeferred: 0, presence.LeaveLater: 0,
		},
	}
	if diff := gocmp.Diff(want, tracker.Tally()); diff != "" {
		t.Errorf("at the start: %s", diff)
	}
	var beats []presence.Beat
	var leaves []presence.Leave
	for _, user := range []string{"old", "old", "new", "old", "more", "late", "late", "late", "kept", "full", "grace", "nobody", "next"} {
		beats = append(beats, presence.Beat{User: user, Session: "s"})
		leaves = append(leaves, presence.Leave{User: user, Session: "s"})
	}
	for range 2 {
		if _, err := tracker.Heartbeats(t.Context(), append(beats, presence.Beat{User: "b b", Session: "s"})); err != nil {
			t.Fatal(err)
		}
		if _, err := tracker.Leaves(t.Context(), append(leaves, presence.Leave{})); err != nil {
			t.Fatal(err)
		}
	}
	for i := range beats {
		user := beats[i].User
		_, err := tracker.Heartbeat(t.Context(), beats[i])
		if want := map[string]fault.Kind{"full": fault.Conflict, "next": fault.Unavailable}[user]; fault.KindOf(err) != want {
			t.Errorf("a beat of %s: %v", user, err)
		}
		if _, err := tracker.Leave(t.Context(), leaves[i]); (err != nil) != (user == "next") || err != nil && !fault.Passing(err) {
			t.Errorf("a leave of %s: %v", user, err)
		}
	}
	live.err = errors.New("away")
	if _, err := tracker.Heartbeats(t.Context(), beats); err == nil {
		t.Error("beats: no error")
	}
	if _, err := tracker.Leaves(t.Context(), leaves[:5]); err == nil {
		t.Error("leaves: no error")
	}
	want = presence.Tally{
		Beats: map[presence.Change]int64{
			presence.ChangeOnline: 3, presence.ChangeStarted: 3, presence.ChangeRenewed: 15, presence.ChangeStale: 9, presence.ChangeDeferred: 3, presence.ChangeFull: 3,
			presence.ChangeLater: 3,
		},
		Leaves: map[presence.LeaveOutcome]int64{
			presence.Left: 18, presence.Leaving: 3, presence.LeaveStale: 9, presence.LeaveUnknown: 3, presence.LeaveDeferred: 3, presence.LeaveLater: 3,
		},
		BeatsFailed: 13, LeavesFailed: 5,
	}
	if diff := gocmp.Diff(want, tracker.Tally()); diff != "" {
		t.Error(diff)
	}
}

// TestCountingTakesNoMemory: a beat is on the fast path.
func TestCountingTakesNoMemory(t *testing.T) {
	tracker := presence.NewTracker(ready{{Change: presence.ChangeRenewed, Status: presence.Online}}, records{}, presence.DefaultTTL)
	beat := presence.Beat{User: "ann", Session: "s", TTL: seconds(45)}
	// The two are the beat, which the ttl's default may be written to, and the slice for the store.
	if n := testing.AllocsPerRun(1000, func() { _, _ = tracker.Heartbeat(t.Context(), beat) }); n > 2 {
		t.Errorf("%v allocations for a beat", n)
	}
}

// ready is a store that has its answer ready.
type ready []presence.BeatOutcome

func (r ready) Heartbeats(context.Context, []presence.Beat) ([]presence.BeatOutcome, error) {
	return r, nil
}

func (r ready) Leaves(context.Context, []presence.Leave) ([]presence.LeaveOutcome, error) {
	return nil, nil
}

func (r ready) Users(context.Context, []string) ([]*presence.User, error) { return nil, nil }

func TestQueriesAreChecked(t *testing.T) {
	t.Parallel()
	tracker := presence.NewTracker(&taking{}, records{}, presence.DefaultTTL)
	_, err := tracker.Users(t.Context(), []string{"ann", "", "b b"})
	if got := pointers(err); !slices.Equal(got, []string{"/users/1", "/users/2"}) {
		t.Errorf("%v: %q", err, got)
	}
}

// TestFaultsOfTheStore: its kind reaches the caller, whichever call failed.
func TestFaultsOfTheStore(t *testing.T) {
	t.Parallel()
	down := &fault.Error{Kind: fault.Unavailable, Message: "away", Err: errors.New("refused")}
	tracker := presence.NewTracker(&taking{err: down}, records{}, presence.DefaultTTL)
	good := presence.Beat{User: "ann", Session: "s"}
	_, beat := tracker.Heartbeat(t.Context(), good)
	_, beats := tracker.Heartbeats(t.Context(), []presence.Beat{good})
	_, leave := tracker.Leave(t.Context(), presence.Leave{User: "ann", Session: "s"})
	_, leaves := tracker.Leaves(t.Context(), []presence.Leave{{User: "ann", Session: "s"}})
	for name, err := range map[string]error{"beat": beat, "beats": beats, "leave": leave, "leaves": leaves} {
		if fault.KindOf(err) != fault.Unavailable || !errors.Is(err, down) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestErrorText(t *testing.T) {
	t.Parallel()
	err := &fault.Error{Kind: fault.Invalid, Message: "wrong", Fields: []fault.FieldError{{Pointer: "/a", Detail: "must be b"}}, Err: errors.New("cause")}
	if got := err.Error(); got != "wrong; /a must be b: cause" {
		t.Error(got)
	}
	if fault.KindOf(errors.New("foreign")) != fault.Internal || fault.KindOf(nil) != fault.Internal || fault.Refuse(nil) != nil {
		t.Error("a foreign error is ours to mend, and nothing wrong is no error")
	}
}

func TestFormatTime(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 3, 1, 9, 15, 30, 7_999_999, time.FixedZone("CET", 3600))
	if got := presence.FormatTime(at); got != "2026-03-01T08:15:30.007Z" {
		t.Error(got)
	}
	if got := presence.FormatOptional(at); got == nil || *got != "2026-03-01T08:15:30.007Z" || presence.FormatOptional(time.Time{}) != nil {
		t.Error(got)
	}
}
