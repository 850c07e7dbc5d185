package triggers

import (
	"bytes"
	"encoding/json"
	"testing"

	"userconnectivity/handler/eventlog/eventlogtest"
)

// TestRecordedAnswers: an event is answered as earlier versions did, byte for byte.
func TestRecordedAnswers(t *testing.T) {
	t.Parallel()
	for name, record := range eventlogtest.Recorded() {
		text := eventlogtest.RecordedText(t, name)
		if got, err := json.Marshal(viewEvent(record)); err != nil || !bytes.Equal(got, text) {
			t.Errorf("%s is answered as\n%s, want\n%s; %v", name, got, text, err)
		}
	}
}
