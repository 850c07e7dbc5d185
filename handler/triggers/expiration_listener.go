package triggers

import (
	"net/http"
	"time"
)

// supervisor looks after the listener's loop; expiry.Listener is one.
type supervisor interface {
	// Supervise returns lines that say what the loop did.
	Supervise(now time.Time) []string
}

// expirationListener is the function ExpirationListener. The loop runs from the start of the process, in the
// background; the timer's call supervises it, reports, and returns at once (design, section 2).
func expirationListener(s supervisor) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { succeed(w, s.Supervise(time.Now())...) }
}
