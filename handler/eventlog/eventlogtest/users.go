package eventlogtest

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// Records are the users records of a store as texts, for what another version or another program does to them.
type Records interface {
	// Put makes or replaces a record by a JSON object.
	Put(t *testing.T, user, text string)
	// Text returns a record.
	Text(t *testing.T, user string) string
}

// RunUsers runs the tests of users records that another version or another program wrote. Each opens a store of its own,
// empty, that counts what it repairs.
func RunUsers(t *testing.T, open func(t *testing.T) (Store, Records)) {
	t.Helper()
	for name, junk := range map[string]string{
		"nothing": `{}`, "nulls": `{"epoch":null,"status":null,"since":null}`,
		"epoch is a text": `{"epoch":"soon"}`, "epoch is digits in a text": `{"epoch":"1"}`, "epoch is an object": `{"epoch":{"n":1}}`,
		"epoch has a fraction": `{"epoch":1.5}`, "status": `{"status":[1]}`, "since": `{"since":7}`, "since is no time": `{"since":"yesterday"}`,
		"lastSeen": `{"lastSeen":{}}`, "groups": `{"groups":"north"}`, "sessions": `{"sessions":{"a":1}}`, "a session": `{"sessions":[{"ttlSeconds":"x"}]}`,
		"life": `{"life":false}`, "generation": `{"generation":[]}`, "format": `{"format":"x"}`, "our format": `{"format":1}`,
		"all": `{"epoch":[],"status":1,"since":1,"lastSeen":1,"groups":1,"sessions":1,"life":1,"generation":"","format":[],"write":3}`,
	} {
		t.Run("junk/"+strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			t.Parallel()
			s, records := open(t)
			junkRecord(t, s, records, junk)
		})
	}
	t.Run("junk_in_a_newer_record", func(t *testing.T) {
		t.Parallel()
		s, records := open(t)
		e := Online("ada", 5)
		records.Put(t, "ada", fmt.Sprintf(`{"id":"ada","epoch":%d,"status":"online","groups":7}`, e.Epoch))
		for _, old := range []presence.Event{e, Offline("ada", 4)} {
			if applied, err := s.Apply(t.Context(), old); applied || err != nil {
				t.Errorf("epoch %d: applied %v, %v; want it to be overtaken", old.Epoch, applied, err)
			}
		}
		if u := user(t, s, "ada"); u.Epoch != e.Epoch || u.Status != presence.Online || u.Groups != nil {
			t.Errorf("%+v", u)
		}
	})
	t.Run("later_version", func(t *testing.T) {
		t.Parallel()
		s, records := open(t)
		laterRecord(t, s, records)
	})
}

// object reads the members of a JSON object, numbers as they are written.
func object(t *testing.T, text string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var members map[string]any
	if err := d.Decode(&members); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return members
}

// junkRecord: what of a record cannot be read neither fails a question nor keeps the next event from being applied, and
// what others added stays.
func junkRecord(t *testing.T, s Store, records Records, junk string) {
	members := object(t, `{"id":"ada","zone":{"n":1e309},"epoch":3,"status":"offline","since":"2026-11-20T12:00:00Z","groups":["old"],"sessions":[]}`)
	for name, value := range object(t, junk) {
		members[name] = value
	}
	text, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	records.Put(t, "ada", string(text))
	if u := user(t, s, "ada"); u.ID != "ada" || u.Epoch != 0 && u.Epoch != 3 {
		t.Errorf("before: %+v", u)
	}
	e := Online("ada", 1)
	if applied, err := s.Apply(t.Context(), e); !applied || err != nil {
		t.Fatalf("apply: %v, %v", applied, err)
	}
	want := presence.User{
		ID: "ada", Status: presence.Online, Epoch: e.Epoch, Since: e.DetectedAt, LastSeen: e.LastSeen, Groups: e.Groups,
		Sessions: []presence.Session{{ID: "web", StartEpoch: e.Epoch, TTL: 45 * time.Second, Grace: 5 * time.Second}},
	}
	if diff := cmp.Diff(want, user(t, s, "ada"), cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("after (-want +got):\n%s", diff)
	}
	if zone := object(t, records.Text(t, "ada"))["zone"]; !cmp.Equal(zone, any(map[string]any{"n": json.Number("1e309")})) {
		t.Errorf("what another program added became %v", zone)
	}
	if applied, err := s.Apply(t.Context(), e); applied || err != nil {
		t.Errorf("the same again: %v, %v", applied, err)
	}
}

// laterRecord: a record of a later form stays as it is. An event that it has already is done; one that is newer waits,
// and is applied once the record can be changed.
func laterRecord(t *testing.T, s Store, records Records) {
	known := Online("ada", 5)
	text := fmt.Sprintf(`{"id":"ada","format":2,"epoch":"%d","status":"online","since":"2026-11-20T12:00:00Z","lastSeen":"2026-11-20T12:00:01Z",`+
		`"groups":{"north":1e309},"sessions":{"web":[45]}}`, known.Epoch)
	records.Put(t, "ada", text)
	if u := user(t, s, "ada"); u.ID != "ada" || u.Epoch != known.Epoch || u.Status != presence.Online || u.Since.Year() != 2026 || u.LastSeen.Second() != 1 {
		t.Errorf("what keeps its form in every version is read as %+v", u)
	}
	for _, e := range []presence.Event{known, Offline("ada", 4)} {
		if applied, err := s.Apply(t.Context(), e); applied || err != nil {
			t.Errorf("epoch %d: applied %v, %v; want it to be overtaken", e.Epoch, applied, err)
		}
	}
	started := Online("ada", 7)
	started.Type = presence.SessionStarted
	for _, e := range []presence.Event{Offline("ada", 6), started} {
		applied, err := s.Apply(t.Context(), e)
		wantError(t, "a newer event", err, eventlog.ErrLater)
		if applied || !fault.Passing(err) {
			t.Errorf("applied %v; the error %v passes: %v", applied, err, fault.Passing(err))
		}
	}
	if diff := cmp.Diff(object(t, text), object(t, records.Text(t, "ada"))); diff != "" {
		t.Errorf("the record was changed (-want +got):\n%s", diff)
	}
	other := Online("bob", 1)
	if applied, err := s.Apply(t.Context(), other); !applied || err != nil {
		t.Errorf("another user: %v, %v", applied, err)
	}
	records.Put(t, "ada", fmt.Sprintf(`{"id":"ada","epoch":%d,"status":"online"}`, known.Epoch)) // back in our form
	if applied, err := s.Apply(t.Context(), started); !applied || err != nil {
		t.Errorf("when it can be changed: %v, %v", applied, err)
	}
	if s, ok := s.(interface{ Repaired() int64 }); !ok || s.Repaired() != 0 {
		t.Error("what a later version wrote counts as repaired, or nothing is counted")
	}
}
