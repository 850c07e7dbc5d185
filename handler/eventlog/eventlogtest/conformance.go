// Package eventlogtest is the contract of the event log, the users records and the profiles as tests. Every
// implementation runs the same suite: what holds for the embedded store holds for Cosmos DB.
package eventlogtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
)

// Store is the contract: what the handler expects of an event log with its users records and profiles.
type Store interface {
	Write(ctx context.Context, updates []eventlog.Update) error
	Event(ctx context.Context, id string) (eventlog.Record, error)
	UserEvents(ctx context.Context, user string, limit int, continuation string) (eventlog.Page, error)
	Apply(ctx context.Context, e presence.Event) (applied bool, err error)
	User(ctx context.Context, id string) (presence.User, bool, error)
	Profile(ctx context.Context, id string) (doc json.RawMessage, etag string, err error)
	PutProfile(ctx context.Context, id string, doc json.RawMessage, ifMatch string) (etag string, err error)
	DeleteProfile(ctx context.Context, id string) error
	Ping(ctx context.Context) error
	Close() error
}

// Run runs the suite. Each test opens a store of its own, empty; open registers its clean-up with t.
func Run(t *testing.T, open func(t *testing.T) Store) {
	t.Helper()
	tests := []struct {
		name string
		test func(t *testing.T, s Store)
	}{
		{"write_and_read_back", writeAndReadBack},
		{"largest_event", largestEvent},
		{"expired_key", expiredKey},
		{"repeated_write_changes_nothing", repeatedWrite},
		{"late_queued_does_not_hide_done", lateQueued},
		{"statuses_in_any_order", anyOrder},
		{"one_event_several_times_in_one_write", sameEventInOneWrite},
		{"update_without_event", updateWithoutEvent},
		{"newer_copy_of_an_event", newerCopy},
		{"junk_ids", junkIDs},
		{"batch_of_500", largeBatch},
		{"writers_race_for_one_event", writersRace},
		{"writers_race_for_many_events", batchesRace},
		{"user_events_in_pages", pages},
		{"user_events_of_one_epoch", pagesOfOneEpoch},
		{"user_events_while_more_come", pagesWhileMoreCome},
		{"continuation_is_checked", continuations},
		{"apply_takes_only_a_higher_epoch", apply},
		{"apply_keeps_since", since},
		{"apply_in_any_order", applyRace},
		{"profiles", profiles},
		{"profiles_race", profilesRace},
		{"ended_context", endedContext},
		{"close", closed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(t, open(t))
		})
	}
}

// detectedAt is recent, so that no store forgets an event during a test, and the same for all events.
var detectedAt = time.Now().UTC().Truncate(time.Millisecond).Add(-time.Minute)

// Offline returns an event as a claim makes it. The events of one user differ by n: it is part of id and epoch.
func Offline(user string, n int) presence.Event {
	at := detectedAt
	epoch := at.UnixMilli() + int64(n)
	id := presence.EventID(user, "web", presence.UserOffline, int64(n))
	return presence.Event{
		ID: id, Type: presence.UserOffline, Subject: presence.Subject{User: user, Session: "web"},
		Body: presence.Body{
			Epoch: epoch, Reason: presence.ReasonExpired, Deadline: at.Add(-20 * time.Millisecond), DetectedAt: at, LastSeen: at.Add(-45 * time.Second),
			Groups: []string{"north", "facility:7"}, Life: "life-1", Generation: 3,
		},
		Traceparent: presence.TraceparentOf(id),
	}
}

// Online returns an event that leaves its user online with one session.
func Online(user string, n int) presence.Event {
	e := Offline(user, n)
	e.ID = presence.EventID(user, "web", presence.UserOnline, int64(n))
	e.Type, e.Reason, e.Deadline = presence.UserOnline, presence.ReasonBeat, time.Time{}
	e.Sessions = []presence.EventSession{{Session: "web", StartEpoch: e.Epoch, TTLSeconds: 45, GraceSeconds: 5}}
	e.Meta = json.RawMessage(`{"app":"shop","tabs":[1,2]}`)
	return e
}

// Step returns a step of the original's given delivery, some milliseconds after the event.
func Step(e presence.Event, delivery int, status eventlog.Status, ms int) eventlog.Step {
	return eventlog.Step{
		Status: status, At: e.DetectedAt.Add(time.Duration(ms) * time.Millisecond), Attempt: eventlog.Attempt{Delivery: delivery},
	}
}

// Sent is what the relay writes: detected and queued.
func Sent(e presence.Event) eventlog.Update {
	return eventlog.Update{Event: e, Steps: []eventlog.Step{
		Step(e, 0, eventlog.Detected, 0), Step(e, 0, eventlog.Queued, 5),
	}}
}

// Handled is what the worker writes: detected, processing and done.
func Handled(e presence.Event) eventlog.Update {
	return eventlog.Update{Event: e, Steps: []eventlog.Step{
		Step(e, 0, eventlog.Detected, 0), Step(e, 1, eventlog.Processing, 9), Step(e, 1, eventlog.Done, 12),
	}}
}

func writeAndReadBack(t *testing.T, s Store) {
	if err := s.Ping(t.Context()); err != nil {
		t.Fatalf("ping: %v", err)
	}
	for _, u := range []eventlog.Update{Sent(Offline("ada", 1)), Handled(Online("a.B-9_~:@|+=", 2))} {
		write(t, s, u)
		want := eventlog.Record{Event: u.Event, History: u.Steps}
		if diff := cmp.Diff(want, event(t, s, u.Event.ID), sameJSON); diff != "" {
			t.Errorf("read back (-want +got):\n%s", diff)
		}
	}
	_, err := s.Event(t.Context(), Offline("ada", 2).ID)
	wantError(t, "event that was never written", err, eventlog.ErrNotFound)
	write(t, s)
}

func largestEvent(t *testing.T, s Store) {
	e := Online(strings.Repeat("u", presence.MaxIDLength), 1)
	e.Groups, e.Sessions = nil, nil
	for i := range presence.MaxGroups {
		e.Groups = append(e.Groups, fmt.Sprintf("%0*d", presence.MaxIDLength, i))
	}
	for i := range presence.MaxSessions {
		e.Sessions = append(e.Sessions, presence.EventSession{
			Session: fmt.Sprintf("%0*d", presence.MaxIDLength, i), StartEpoch: e.Epoch, TTLSeconds: 3600, GraceSeconds: 600,
		})
	}
	e.Meta = json.RawMessage(`{"m":"` + strings.Repeat("é", (presence.MaxMetaBytes-8)/2) + `"}`)
	u := Sent(e)
	for d := range eventlog.MaxHistory {
		failed := Step(e, d+1, eventlog.Failed, d)
		failed.Detail = strings.Repeat("d", eventlog.MaxDetail)
		u.Steps = append(u.Steps, failed)
	}
	write(t, s, u)
	got := event(t, s, e.ID)
	if diff := cmp.Diff(e, got.Event, sameJSON); diff != "" || len(got.History) != eventlog.MaxHistory {
		t.Errorf("%d steps, want %d; event (-want +got):\n%s", len(got.History), eventlog.MaxHistory, diff)
	}
	if applied, err := s.Apply(t.Context(), e); !applied || err != nil {
		t.Fatalf("apply: %v, %v", applied, err)
	}
	if u := user(t, s, e.User); len(u.Sessions) != presence.MaxSessions || len(u.Groups) != presence.MaxGroups {
		t.Errorf("user has %d sessions and %d groups", len(u.Sessions), len(u.Groups))
	}
}

// expiredKey: the expiry of a foreign key is kept like any event, and is none of the user of the same name.
func expiredKey(t *testing.T, s Store) {
	id := presence.KeyEventID("ada", detectedAt.UnixMilli(), 1)
	e := presence.Event{
		ID: id, Type: presence.KeyExpired, Subject: presence.Subject{Key: "ada"},
		Body:        presence.Body{Epoch: detectedAt.UnixMilli(), Reason: presence.ReasonExpired, DetectedAt: detectedAt, Life: "life-1"},
		Traceparent: presence.TraceparentOf(id),
	}
	write(t, s, Sent(e), Sent(Offline("ada", 1)))
	if diff := cmp.Diff(e, event(t, s, id).Event, sameJSON); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	wantHistory(t, s, e, "detected", "queued")
	if p := page(t, s, "ada", 10, ""); len(p.Records) != 1 || p.Records[0].Event.ID != Offline("ada", 1).ID {
		t.Errorf("events of the user: %+v", p.Records)
	}
	if applied, err := s.Apply(t.Context(), e); applied || err != nil {
		t.Errorf("apply: %v, %v", applied, err)
	}
}

func repeatedWrite(t *testing.T, s Store) {
	u := Sent(Offline("ada", 1))
	for range 3 {
		write(t, s, u)
	}
	wantHistory(t, s, u.Event, "detected", "queued")
}

func lateQueued(t *testing.T, s Store) {
	e := Offline("ada", 1)
	write(t, s, Handled(e))
	write(t, s, Sent(e))
	wantHistory(t, s, e, "detected", "queued", "processing", "done")
}

func anyOrder(t *testing.T, s Store) {
	e := Offline("ada", 1)
	replayed := eventlog.Step{Status: eventlog.Queued, At: e.DetectedAt.Add(time.Second), Attempt: eventlog.Attempt{Replay: 1}}
	parts := []eventlog.Update{
		Sent(e),
		{Event: e, Steps: []eventlog.Step{Step(e, 1, eventlog.Processing, 6), Step(e, 1, eventlog.Failed, 7)}},
		{Event: e, Steps: []eventlog.Step{Step(e, 2, eventlog.Processing, 8), Step(e, 2, eventlog.Dead, 9)}},
		{Event: e, Steps: []eventlog.Step{replayed}},
	}
	rand.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	for _, u := range parts {
		write(t, s, u)
	}
	wantHistory(t, s, e, "detected", "queued", "processing", "failed", "processing", "dead", "queued")
	if got := event(t, s, e.ID); got.LastReplay() != 1 {
		t.Errorf("last replay = %d, want 1", got.LastReplay())
	}
}

func sameEventInOneWrite(t *testing.T, s Store) {
	e, other := Offline("ada", 1), Offline("bob", 1)
	write(t, s, Handled(e), Sent(other), Sent(e), Handled(e))
	wantHistory(t, s, e, "detected", "queued", "processing", "done")
	wantHistory(t, s, other, "detected", "queued")
}

func updateWithoutEvent(t *testing.T, s Store) {
	e := Offline("ada", 1)
	dead := eventlog.Update{Event: presence.Event{ID: e.ID}, Steps: []eventlog.Step{Step(e, 3, eventlog.Dead, 40)}}
	write(t, s, dead)
	_, err := s.Event(t.Context(), e.ID)
	wantError(t, "event of which only a status is known", err, eventlog.ErrNotFound)

	write(t, s, Sent(e))
	write(t, s, dead)
	wantHistory(t, s, e, "detected", "queued", "dead")
	if got := event(t, s, e.ID); got.Event.User != "ada" || got.Event.Epoch != e.Epoch {
		t.Errorf("the status changed the event to %+v", got.Event)
	}

	both := Offline("bob", 1)
	alone := eventlog.Update{Event: presence.Event{ID: both.ID}, Steps: []eventlog.Step{Step(both, 3, eventlog.Dead, 40)}}
	write(t, s, alone, Sent(both))
	wantHistory(t, s, both, "detected", "queued", "dead")
}

func newerCopy(t *testing.T, s Store) {
	first, other := Offline("ada", 1), Offline("ada", 5)
	again := first
	again.Epoch, again.Generation = other.Epoch+10, first.Generation+1
	again.DetectedAt = first.DetectedAt.Add(time.Second)
	write(t, s, Sent(first), Sent(other))
	write(t, s, Sent(again))
	write(t, s, Handled(first))
	if got := event(t, s, first.ID); got.Event.Epoch != again.Epoch || got.Event.Generation != again.Generation {
		t.Errorf("epoch %d, generation %d; want those of the newer copy, %d and %d",
			got.Event.Epoch, got.Event.Generation, again.Epoch, again.Generation)
	}
	wantHistory(t, s, first, "detected", "queued", "processing", "done")
	if diff := cmp.Diff([]string{first.ID, other.ID}, walk(t, s, "ada", 10)); diff != "" {
		t.Errorf("events, newest first (-want +got):\n%s", diff)
	}
}

func junkIDs(t *testing.T, s Store) {
	good := Offline("ada", 1)
	for _, id := range []string{"", "x", "-", "../../users", "a/b?c#d\\e", good.ID + "A", strings.ToLower(good.ID), strings.Repeat("A", 5000)} {
		_, err := s.Event(t.Context(), id)
		wantError(t, fmt.Sprintf("event %.40q", id), err, eventlog.ErrNotFound)

		junk := good
		junk.ID = id
		err = s.Write(t.Context(), []eventlog.Update{Sent(junk), Sent(good)})
		wantError(t, fmt.Sprintf("write of event %.40q", id), err, eventlog.ErrID)
		write(t, s, eventlog.Update{Event: presence.Event{ID: id}})
	}
	wantHistory(t, s, good, "detected", "queued")
}

func largeBatch(t *testing.T, s Store) {
	var sent, handled []eventlog.Update
	for n := range 500 {
		e := Offline(fmt.Sprint("user-", n%400), n)
		sent, handled = append(sent, Sent(e)), append(handled, Handled(e))
	}
	write(t, s, sent...)
	write(t, s, handled...)
	for _, u := range sent {
		wantHistory(t, s, u.Event, "detected", "queued", "processing", "done")
	}
}

func writersRace(t *testing.T, s Store) {
	e := Offline("ada", 1)
	const deliveries = 45
	run(t, 2, func(writer int) error {
		for d := range deliveries {
			steps := []eventlog.Step{Step(e, 0, eventlog.Detected, 0)}
			if writer == 0 {
				steps = append(steps, Step(e, d+1, eventlog.Processing, d))
			} else {
				steps = append(steps, Step(e, d+1, eventlog.Failed, d))
			}
			if err := s.Write(t.Context(), []eventlog.Update{{Event: e, Steps: steps}}); err != nil {
				return err
			}
		}
		return nil
	})
	want := []eventlog.Status{eventlog.Detected}
	for range deliveries {
		want = append(want, eventlog.Processing, eventlog.Failed)
	}
	wantHistory(t, s, e, want...)
}

func batchesRace(t *testing.T, s Store) {
	var sent, handled []eventlog.Update
	for n := range 200 {
		e := Offline("ada", n)
		sent, handled = append(sent, Sent(e)), append(handled, Handled(e))
	}
	run(t, 4, func(writer int) error {
		updates := slices.Clone(sent)
		if writer%2 == 1 {
			updates = slices.Clone(handled)
		}
		rand.Shuffle(len(updates), func(i, j int) { updates[i], updates[j] = updates[j], updates[i] })
		for batch := range slices.Chunk(updates, 10) {
			if err := s.Write(t.Context(), batch); err != nil {
				return err
			}
		}
		return nil
	})
	for _, u := range sent {
		wantHistory(t, s, u.Event, "detected", "queued", "processing", "done")
	}
}

func pages(t *testing.T, s Store) {
	const n = 25
	var updates []eventlog.Update
	var want []string
	for i := range n {
		updates = append(updates, Sent(Offline("ada", i)), Sent(Offline("bob", i)))
		want = append(want, Offline("ada", n-1-i).ID)
	}
	rand.Shuffle(len(updates), func(i, j int) { updates[i], updates[j] = updates[j], updates[i] })
	write(t, s, updates...)
	for _, limit := range []int{1, 5, 7, 25, 26, 100} {
		if diff := cmp.Diff(want, walk(t, s, "ada", limit)); diff != "" {
			t.Errorf("limit %d (-want +got):\n%s", limit, diff)
		}
	}
	if page := page(t, s, "carol", 10, ""); len(page.Records) != 0 || page.Continuation != "" {
		t.Errorf("page of a user without events: %+v", page)
	}
}

func pagesOfOneEpoch(t *testing.T, s Store) {
	want := map[string]bool{}
	for i := range 9 {
		e := Offline("ada", i)
		e.Epoch = 1_800_000_000_000
		want[e.ID] = true
		write(t, s, Sent(e))
	}
	got := map[string]bool{}
	ids := walk(t, s, "ada", 2)
	for _, id := range ids {
		got[id] = true
	}
	if diff := cmp.Diff(want, got); diff != "" || len(ids) != len(want) {
		t.Errorf("%d events, want each of %d once (-want +got):\n%s", len(ids), len(want), diff)
	}
}

func pagesWhileMoreCome(t *testing.T, s Store) {
	var want []string
	for i := range 12 {
		write(t, s, Sent(Offline("ada", i)))
		want = append([]string{Offline("ada", i).ID}, want...)
	}
	var got []string
	continuation := ""
	for i := 12; ; i++ {
		p := page(t, s, "ada", 5, continuation)
		for _, r := range p.Records {
			got = append(got, r.Event.ID)
		}
		if continuation = p.Continuation; continuation == "" {
			break
		}
		write(t, s, Sent(Offline("ada", i)))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func continuations(t *testing.T, s Store) {
	for i := range 4 {
		write(t, s, Sent(Offline("ada", i)), Sent(Offline("bob", i)))
	}
	token := page(t, s, "ada", 2, "").Continuation
	if token == "" || strings.ContainsAny(token, "+/= &?#%\"") {
		t.Fatalf("continuation %q is empty or not URL-safe", token)
	}
	for _, junk := range []string{"x", "1", "null", token + "A", token[:len(token)-2], "2" + token[1:], strings.Repeat("z", 9000), "\x00"} {
		_, err := s.UserEvents(t.Context(), "ada", 2, junk)
		wantError(t, fmt.Sprintf("continuation %.40q", junk), err, eventlog.ErrContinuation)
	}
	_, err := s.UserEvents(t.Context(), "bob", 2, token)
	wantError(t, "continuation of another user", err, eventlog.ErrContinuation)
	if p := page(t, s, "ada", 2, token); len(p.Records) != 2 || p.Records[0].Event.ID != Offline("ada", 1).ID {
		t.Errorf("the untouched continuation gave %d records", len(p.Records))
	}
}

func apply(t *testing.T, s Store) {
	if u, known, err := s.User(t.Context(), "ada"); known || err != nil || u.Epoch != 0 {
		t.Fatalf("user of whom nothing is known: %+v, %v, %v", u, known, err)
	}
	online, offline := Online("ada", 10), Offline("ada", 20)
	for _, step := range []struct {
		event   presence.Event
		applied bool
		epoch   int64
	}{
		{online, true, online.Epoch},
		{online, false, online.Epoch},
		{Offline("ada", 5), false, online.Epoch},
		{offline, true, offline.Epoch},
		{online, false, offline.Epoch},
	} {
		applied, err := s.Apply(t.Context(), step.event)
		if applied != step.applied || err != nil {
			t.Fatalf("apply epoch %d: %v, %v; want %v", step.event.Epoch, applied, err, step.applied)
		}
		if u := user(t, s, "ada"); u.Epoch != step.epoch {
			t.Fatalf("epoch = %d, want %d", u.Epoch, step.epoch)
		}
	}
	want := presence.User{
		ID: "ada", Status: presence.Offline, Epoch: offline.Epoch, Since: offline.DetectedAt, LastSeen: offline.LastSeen,
		Groups: offline.Groups,
	}
	if diff := cmp.Diff(want, user(t, s, "ada"), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("offline user (-want +got):\n%s", diff)
	}

	again := Online("ada", 30)
	if applied, err := s.Apply(t.Context(), again); !applied || err != nil {
		t.Fatalf("apply: %v, %v", applied, err)
	}
	want = presence.User{
		ID: "ada", Status: presence.Online, Epoch: again.Epoch, Since: again.DetectedAt, LastSeen: again.LastSeen, Groups: again.Groups,
		Sessions: []presence.Session{{ID: "web", StartEpoch: again.Epoch, TTL: 45 * time.Second, Grace: 5 * time.Second}},
	}
	if diff := cmp.Diff(want, user(t, s, "ada"), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("online user (-want +got):\n%s", diff)
	}

	other := presence.Event{ID: again.ID, Type: "group.online", Subject: presence.Subject{User: "ada"}, Body: presence.Body{Epoch: again.Epoch + 1, DetectedAt: again.DetectedAt}}
	if applied, err := s.Apply(t.Context(), other); applied || err != nil {
		t.Errorf("an event of another kind: applied %v, %v; want false", applied, err)
	}
	if _, known, err := s.User(t.Context(), "bob"); known || err != nil {
		t.Errorf("another user: %v, %v", known, err)
	}
}

func since(t *testing.T, s Store) {
	at := func(n int, of presence.EventType) presence.Event {
		e := Online("ada", n)
		e.Type, e.DetectedAt, e.LastSeen = of, e.DetectedAt.Add(time.Duration(n)*time.Second), time.Time{}
		if n == 1 {
			e.LastSeen = e.DetectedAt
		}
		return e
	}
	online := at(1, presence.UserOnline)
	offline, back := at(6, presence.UserOffline), at(9, presence.UserOnline)
	for _, step := range []struct {
		event presence.Event
		since time.Time
	}{
		{online, online.DetectedAt},
		{at(2, presence.SessionStarted), online.DetectedAt},
		{at(3, presence.SessionEnded), online.DetectedAt},
		{offline, offline.DetectedAt},
		{at(7, presence.SessionStarted), at(7, presence.SessionStarted).DetectedAt}, // its user.online was overtaken
		{back, back.DetectedAt},                                                     // the user.offline before it was overtaken
	} {
		if applied, err := s.Apply(t.Context(), step.event); !applied || err != nil {
			t.Fatalf("apply %s: %v, %v", step.event.Type, applied, err)
		}
		if u := user(t, s, "ada"); !u.Since.Equal(step.since) {
			t.Errorf("after %s since = %v, want %v", step.event.Type, u.Since, step.since)
		} else if u.LastSeen.IsZero() {
			t.Errorf("after %s, which does not know it, lastSeen is lost", step.event.Type)
		}
	}
}

func applyRace(t *testing.T, s Store) {
	const n = 64
	order := rand.Perm(n)
	var mu sync.Mutex
	applied := map[int64]bool{}
	run(t, 8, func(worker int) error {
		for _, i := range order[worker*n/8 : (worker+1)*n/8] {
			e := Online("ada", 0)
			e.Epoch = int64(i + 1)
			ok, err := s.Apply(t.Context(), e)
			if err != nil {
				return err
			}
			mu.Lock()
			applied[e.Epoch] = ok
			mu.Unlock()
		}
		return nil
	})
	if u := user(t, s, "ada"); u.Epoch != n || !applied[n] {
		t.Errorf("epoch = %d, applied %v; want the highest, %d", u.Epoch, applied[n], n)
	}
}

func profiles(t *testing.T, s Store) {
	ctx := t.Context()
	_, _, err := s.Profile(ctx, "p1")
	wantError(t, "profile that is not there", err, eventlog.ErrProfileNotFound)
	if err := s.DeleteProfile(ctx, "p1"); err != nil {
		t.Errorf("delete of a profile that is not there: %v", err)
	}
	_, err = s.PutProfile(ctx, "p1", json.RawMessage(`{"a":1}`), `"0"`)
	wantError(t, "conditional put of a profile that is not there", err, eventlog.ErrProfileChanged)
	for _, junk := range []string{``, `{`, `[1]`, `"x"`, `null`, `7`} {
		_, err = s.PutProfile(ctx, "p1", json.RawMessage(junk), "")
		wantError(t, "put of "+junk, err, eventlog.ErrProfileInvalid)
	}

	put := func(doc, ifMatch string) string {
		t.Helper()
		etag, err := s.PutProfile(ctx, "p1", json.RawMessage(doc), ifMatch)
		if err != nil || len(etag) < 3 || etag[0] != '"' {
			t.Fatalf("put with if-match %s: etag %s, %v", ifMatch, etag, err)
		}
		got, read, err := s.Profile(ctx, "p1")
		if diff := cmp.Diff(json.RawMessage(doc), got, sameJSON); diff != "" || read != etag || err != nil {
			t.Fatalf("read back: etag %s, want %s; %v (-want +got):\n%s", read, etag, err, diff)
		}
		return etag
	}
	first := put(`{"a":1,"id":"theirs","ttl":1,"_etag":"theirs","list":[1,{"b":null}]}`, "")
	second := put(`{"a":2}`, first)
	_, err = s.PutProfile(ctx, "p1", json.RawMessage(`{"a":3}`), first)
	wantError(t, "put with a stale etag", err, eventlog.ErrProfileChanged)
	third := put(`{"a":4}`, "*")
	if first == second || second == third {
		t.Errorf("etags of different contents: %s, %s, %s", first, second, third)
	}
	put(`{}`, "")

	if _, err := s.PutProfile(ctx, "p2", json.RawMessage(`{"b":1}`), ""); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteProfile(ctx, "p1"); err != nil {
		t.Fatal(err)
	}
	_, _, err = s.Profile(ctx, "p1")
	wantError(t, "deleted profile", err, eventlog.ErrProfileNotFound)
	_, err = s.PutProfile(ctx, "p1", json.RawMessage(`{"a":1}`), "*")
	wantError(t, "conditional put of a deleted profile", err, eventlog.ErrProfileChanged)
	if got, _, err := s.Profile(ctx, "p2"); string(got) == "" || err != nil {
		t.Errorf("the other profile: %s, %v", got, err)
	}
}

func profilesRace(t *testing.T, s Store) {
	const writers, rounds = 4, 10
	if _, err := s.PutProfile(t.Context(), "p", json.RawMessage(`{"n":0}`), ""); err != nil {
		t.Fatal(err)
	}
	run(t, writers, func(int) error {
		for done := 0; done < rounds; {
			doc, etag, err := s.Profile(t.Context(), "p")
			if err != nil {
				return err
			}
			var count struct {
				N int `json:"n"`
			}
			if err := json.Unmarshal(doc, &count); err != nil {
				return err
			}
			_, err = s.PutProfile(t.Context(), "p", json.RawMessage(fmt.Sprintf(`{"n":%d}`, count.N+1)), etag)
			switch {
			case err == nil:
				done++
			case !errors.Is(err, eventlog.ErrProfileChanged):
				return err
			}
		}
		return nil
	})
	doc, _, err := s.Profile(t.Context(), "p")
	if diff := cmp.Diff(json.RawMessage(fmt.Sprintf(`{"n":%d}`, writers*rounds)), doc, sameJSON); diff != "" || err != nil {
		t.Errorf("%v; a conditional put was lost (-want +got):\n%s", err, diff)
	}
}

func endedContext(t *testing.T, s Store) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	e := Online("ada", 1)
	_, _, profileErr := s.Profile(ctx, "p")
	_, putErr := s.PutProfile(ctx, "p", json.RawMessage(`{}`), "")
	_, eventErr := s.Event(ctx, e.ID)
	_, eventsErr := s.UserEvents(ctx, "ada", 5, "")
	_, applyErr := s.Apply(ctx, e)
	_, _, userErr := s.User(ctx, "ada")
	for name, err := range map[string]error{
		"Write": s.Write(ctx, []eventlog.Update{Sent(e)}), "Event": eventErr, "UserEvents": eventsErr, "Apply": applyErr,
		"User": userErr, "Profile": profileErr, "PutProfile": putErr, "DeleteProfile": s.DeleteProfile(ctx, "p"), "Ping": s.Ping(ctx),
	} {
		wantError(t, name+" with an ended context", err, context.Canceled)
	}
	write(t, s, Sent(e))
	wantHistory(t, s, e, "detected", "queued")
}

func closed(t *testing.T, s Store) {
	e := Online("ada", 1)
	write(t, s, Sent(e))
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	_, eventErr := s.Event(t.Context(), e.ID)
	_, applyErr := s.Apply(t.Context(), e)
	for name, err := range map[string]error{
		"Write": s.Write(t.Context(), []eventlog.Update{Sent(e)}), "Event": eventErr, "Apply": applyErr, "Ping": s.Ping(t.Context()),
	} {
		wantError(t, name+" after Close", err, eventlog.ErrClosed)
	}
}

// sameJSON compares JSON texts by their meaning: a store may change their white space and the order of keys.
var sameJSON = cmp.Transformer("JSON", func(text json.RawMessage) any {
	var v any
	if len(text) > 0 && json.Unmarshal(text, &v) != nil {
		return string(text)
	}
	return v
})

func run(t *testing.T, n int, work func(worker int) error) {
	t.Helper()
	var group sync.WaitGroup
	for worker := range n {
		group.Go(func() {
			if err := work(worker); err != nil {
				t.Errorf("writer %d: %v", worker, err)
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func write(t *testing.T, s Store, updates ...eventlog.Update) {
	t.Helper()
	if err := s.Write(t.Context(), updates); err != nil {
		t.Fatalf("write: %v", err)
	}
}

func event(t *testing.T, s Store, id string) eventlog.Record {
	t.Helper()
	r, err := s.Event(t.Context(), id)
	if err != nil {
		t.Fatalf("event %s: %v", id, err)
	}
	return r
}

func user(t *testing.T, s Store, id string) presence.User {
	t.Helper()
	u, known, err := s.User(t.Context(), id)
	if !known || err != nil {
		t.Fatalf("user %s: known %v, %v", id, known, err)
	}
	return u
}

func page(t *testing.T, s Store, user string, limit int, continuation string) eventlog.Page {
	t.Helper()
	p, err := s.UserEvents(t.Context(), user, limit, continuation)
	if err != nil {
		t.Fatalf("events of %s: %v", user, err)
	}
	if len(p.Records) > limit {
		t.Fatalf("a page of %d records, want at most %d", len(p.Records), limit)
	}
	return p
}

// walk reads all pages and returns the ids of the events. Only the last page may be short.
func walk(t *testing.T, s Store, user string, limit int) []string {
	t.Helper()
	var ids []string
	for continuation := ""; ; {
		p := page(t, s, user, limit, continuation)
		for _, r := range p.Records {
			ids = append(ids, r.Event.ID)
		}
		if continuation = p.Continuation; continuation == "" {
			return ids
		}
		if len(p.Records) < limit {
			t.Fatalf("a page of %d records in the middle, want %d", len(p.Records), limit)
		}
	}
}

func wantHistory(t *testing.T, s Store, e presence.Event, want ...eventlog.Status) {
	t.Helper()
	var got []eventlog.Status
	for _, step := range event(t, s, e.ID).History {
		got = append(got, step.Status)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("history of %s (-want +got):\n%s", e.ID, diff)
	}
}

func wantError(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want an error that is %q", what, err, want)
	}
}
