package triggers

import (
	"net/http"

	"userconnectivity/handler/fault"
)

// listener is the expiration listener of this process, whether it runs here or not.
type listener interface {
	// Live returns an error that names the loop of this process which hangs or was never begun, nil when there is none.
	// It asks no other part.
	Live() error
	// Listener returns what the loops of this process did, or an error that says why they do not run or do not sweep.
	Listener() (ListenerFigures, error)
}

// ListenerFigures are what the listener of one process did since it began. Counters begin at 0 with the process.
type ListenerFigures struct {
	// Instance is the process, as app/instance; the other members are its own, not those of all instances.
	Instance string `json:"instance"`
	// StartedAt is when the loops began, LastSweepAt when a sweep last succeeded, "" never being answered with 200.
	StartedAt   string `json:"startedAt"`
	LastSweepAt string `json:"lastSweepAt"`
	// LagMs is how long due sessions may have been waiting, LastLatenessMs by how much the last claim was late.
	LagMs          int64 `json:"lagMs"`
	LastLatenessMs int64 `json:"lastLatenessMs"`
	Sweeps         int64 `json:"sweeps"`
	Claimed        int64 `json:"claimed"`
	Quarantined    int64 `json:"quarantined"`
	Relayed        int64 `json:"relayed"`
	// OutboxDepth is how many events wait in Redis, OldestOutboxMs how long the oldest has waited.
	OutboxDepth    int64 `json:"outboxDepth"`
	OldestOutboxMs int64 `json:"oldestOutboxMs"`
	// Notifications says whether Redis publishes expired events: on, off or unknown.
	Notifications string `json:"notifications"`
}

// expirationListener is the function ExpirationListener, GET /api/listener. The loop runs from the start of the
// process, in the background, and looks after itself; this call only tells of it (design, section 2).
func expirationListener(l listener) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		figures, err := l.Listener()
		if err != nil {
			fail(w, r, &fault.Error{Kind: fault.Unavailable, Message: err.Error()})
			return
		}
		reply(w, http.StatusOK, figures)
	}
}
