package triggers_test

import (
	"encoding/json"
	"slices"
	"testing"

	"userconnectivity/handler/triggers"
)

// TestExpirationListener: the timer's call reports what the loop did, for each form that a timer comes in.
func TestExpirationListener(t *testing.T) {
	t.Parallel()
	lines := supervisor{"sweeps 7, claimed 2", "the relay fails: no broker"}
	b := setup(t, func(h *triggers.Handlers) { h.Listener = lines })
	for _, name := range []string{"timer", "timer-monitored", "timer-first"} {
		outcome, a := b.invoke("ExpirationListener", file(t, name))
		var reply struct{ Logs []string }
		if err := json.Unmarshal(a.Body, &reply); err != nil || outcome != "succeeded" || !slices.Equal(reply.Logs, lines) {
			t.Errorf("%s: %s %s, %v", name, outcome, a.Body, err)
		}
	}
}
