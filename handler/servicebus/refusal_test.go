package servicebus

import (
	"strings"
	"testing"
)

func TestTooLargeErrorNamesItsMessages(t *testing.T) {
	t.Parallel()
	e := &TooLargeError{Queue: "events", Messages: []TooLarge{{"a", 300_000}, {"b", 400_000}}}
	refused := e.Refused()
	if len(refused) != 2 || !strings.Contains(refused["a"], "300000 bytes") || !strings.Contains(refused["b"], "400000 bytes") {
		t.Errorf("refused: %v", refused)
	}
}
