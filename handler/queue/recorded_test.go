package queue

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"userconnectivity/handler/eventlog/eventlogtest"
)

// TestRecordedMessages: what an earlier version sent is read as it was meant, and what is sent now is the same, byte for
// byte.
func TestRecordedMessages(t *testing.T) {
	t.Parallel()
	for name, record := range eventlogtest.Recorded() {
		text := eventlogtest.RecordedText(t, name)
		m, err := codec.Encode(record.Event, 0)
		if err != nil || !bytes.Equal(m.Body, text) {
			t.Errorf("%s is written as\n%s, want\n%s; %v", name, m.Body, text, err)
		}
		if name == "key" { // the worker has nothing to do for it: Decode refuses an event without a user
			continue
		}
		e, _, err := codec.Decode(text)
		if diff := cmp.Diff(record.Event, e, cmpopts.EquateEmpty()); diff != "" || err != nil {
			t.Errorf("%s is read as something else (-want +got):\n%s; %v", name, diff, err)
		}
	}
}
