package eventlogtest

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
)

// Recorded are records whose texts were written by the version before events had one body: as a document in
// handler/eventlog/testdata/recorded, as a message in handler/queue/testdata/recorded, and as an answer in
// handler/triggers/testdata/recorded. They are never written anew: what was stored or sent once is read by every later
// version, and what is written now can be read by the versions that run beside it. Their names are those of the files.
func Recorded() map[string]eventlog.Record {
	at := time.UnixMilli(1795238400123).UTC()
	offline := presence.Event{
		ID: presence.EventID("alice", "phone", presence.UserOffline, 7), Type: presence.UserOffline,
		Subject: presence.Subject{User: "alice", Session: "phone"},
		Body: presence.Body{
			Epoch: 1795238400123, Reason: presence.ReasonExpired, Deadline: at.Add(-23 * time.Millisecond), DetectedAt: at,
			Groups: []string{"north", "facility:7"}, Meta: json.RawMessage(`{"app":"<shop>","n":1e309}`),
			LastSeen: at.Add(-45123 * time.Millisecond), Life: "L", Generation: 2,
		},
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
	}
	online := offline
	online.ID, online.Type, online.Reason, online.Deadline = presence.EventID("alice", "phone", presence.UserOnline, 8), presence.UserOnline, presence.ReasonBeat, time.Time{}
	online.Sessions = []presence.EventSession{{Session: "phone", StartEpoch: 1795238400123, TTLSeconds: 45, GraceSeconds: 5}}
	online.Groups, online.Meta, online.Generation = nil, nil, 0
	key := presence.Event{
		ID: presence.KeyEventID("cart:7", 1795238400123, 3), Type: presence.KeyExpired, Subject: presence.Subject{Key: "cart:7"},
		Body:        presence.Body{Epoch: 1795238400123, Reason: presence.ReasonExpired, DetectedAt: at, Life: "L"},
		Traceparent: offline.Traceparent,
	}
	history := []eventlog.Step{
		{Status: eventlog.Detected, At: at},
		{Status: eventlog.Queued, At: at.Add(7 * time.Millisecond), Detail: "late"},
		{Status: eventlog.Done, At: at.Add(877 * time.Millisecond), Attempt: eventlog.Attempt{Replay: 1, Delivery: 2}},
	}
	return map[string]eventlog.Record{"offline": {Event: offline, History: history}, "online": {Event: online, History: history[:2]}, "key": {Event: key, History: history[:1]}}
}

// RecordedText returns a recorded text of the package under test, without the line end.
func RecordedText(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", "recorded", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSpace(text)
}
