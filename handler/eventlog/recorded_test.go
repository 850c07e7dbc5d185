package eventlog_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/eventlog/eventlogtest"
	"userconnectivity/handler/presence"
)

// members are the members of a JSON object with their texts.
func members(t *testing.T, object []byte) map[string]json.RawMessage {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(object, &m); err != nil {
		t.Fatalf("%v in %s", err, object)
	}
	return m
}

// TestRecordedDocuments: what an earlier version stored is read as it was meant, and what is stored now has the same
// members, letter for letter; a document about a key alone leaves out the user and session that it does not have.
func TestRecordedDocuments(t *testing.T) {
	t.Parallel()
	for name, record := range eventlogtest.Recorded() {
		text := eventlogtest.RecordedText(t, name)
		var d eventlog.Document
		if err := eventlog.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if diff := cmp.Diff(record, d.Record()); diff != "" {
			t.Errorf("%s is read as something else (-want +got):\n%s", name, diff)
		}
		again, err := eventlog.NewDocument(record)
		if err != nil {
			t.Fatal(err)
		}
		written, err := eventlog.Marshal(again)
		if err != nil {
			t.Fatal(err)
		}
		want := members(t, text)
		if name == "key" {
			delete(want, "user")
			delete(want, "session")
		}
		if diff := cmp.Diff(want, members(t, written), texts); diff != "" {
			t.Errorf("%s is written otherwise (-want +got):\n%s", name, diff)
		}
		// A write that changes nothing of it leaves the text alone.
		if same, err := eventlog.Overlay(text, d, again); err != nil || !bytes.Equal(same, text) {
			t.Errorf("%s became %s: %v", name, same, err)
		}
	}
}

// TestRecordedUsers: the same for the users records, which are the events' last words.
func TestRecordedUsers(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"offline", "online"} {
		text := eventlogtest.RecordedText(t, "user."+name)
		var d eventlog.UserDocument
		if err := eventlog.Unmarshal(text, &d); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		made, applied := eventlog.UserDocument{}.Apply(eventlogtest.Recorded()[name].Event)
		if diff := cmp.Diff(made, d); diff != "" || !applied {
			t.Errorf("%s: applied %v; read as something else (-want +got):\n%s", name, applied, diff)
		}
		if written, err := eventlog.Marshal(made); err != nil || !bytes.Equal(written, text) {
			t.Errorf("%s is written as %s, want %s; %v", name, written, text, err)
		}
		if u := d.User(); u.ID != "alice" || u.Epoch != 1795238400123 || u.Status != presence.Status(name) || u.LastSeen.IsZero() {
			t.Errorf("%s: %+v", name, u)
		}
	}
}

// texts compares JSON by its text.
var texts = cmp.Transformer("text", func(m json.RawMessage) string { return string(m) })

// FuzzReadUser: whatever is stored, an event newer than what could be read of it is applied, or waits for a later
// version, and what was written then is read again as it was meant.
func FuzzReadUser(f *testing.F) {
	for _, seed := range []string{``, `{}`, `null`, `{"epoch":"9","format":2}`, `{"epoch":9,"groups":7,"z":[1e309]}`, `{"a":1,"a":2,"since":"2026-11-21T05:20:00.1Z"}`, `{"epoch":1}}`} {
		f.Add([]byte(seed))
	}
	e := eventlogtest.Recorded()["online"].Event
	f.Fuzz(func(t *testing.T, text []byte) {
		old := eventlog.ReadUser(text)
		next, applied, err := old.Apply(e)
		switch {
		case err != nil && !old.Later || applied && old.Later || !applied && err == nil && old.Epoch < e.Epoch:
			t.Fatalf("applied %v to %+v: %v", applied, old, err)
		case !applied:
			return
		}
		written, err := eventlog.Overlay(old.Text, old.UserDocument, next)
		if err != nil {
			t.Fatalf("%q: %v", old.Text, err)
		}
		again := eventlog.ReadUser(written)
		if diff := cmp.Diff(next, again.UserDocument, cmpopts.EquateEmpty()); diff != "" || again.Junk != nil || again.Later {
			t.Fatalf("%q became %q, which is read as something else (-want +got):\n%s", text, written, diff)
		}
	})
}
