package triggers

import (
	"context"
	"fmt"
	"net/http"

	"userconnectivity/handler/worker"
)

// eventWorker works on batches of the connectivity queue; worker.Worker is one.
type eventWorker interface {
	Process(ctx context.Context, batch []worker.Delivery) error
	DeadLetters(ctx context.Context, batch []worker.Delivery) error
}

// connectivityWorker is the function ConnectivityWorker: the events of the queue "connectivity-events".
func connectivityWorker(work eventWorker) http.HandlerFunc { return deliveries(work.Process) }

// deadLetters is the function DeadLetters: what the broker gave up on.
func deadLetters(work eventWorker) http.HandlerFunc { return deliveries(work.DeadLetters) }

// deliveries decodes a batch and hands it over.
func deliveries(process func(context.Context, []worker.Delivery) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		env, err := readEnvelope(w, r)
		if err != nil {
			fail(w, r, err)
			return
		}
		batch, err := env.messages()
		if err != nil {
			fail(w, r, err)
			return
		}
		deliveries := make([]worker.Delivery, len(batch))
		for i, m := range batch {
			deliveries[i] = worker.Delivery{Body: m.Body, MessageID: m.ID, Sequence: m.Sequence, Count: m.Delivery, Reason: deadLetterReason(m)}
		}
		if err := process(r.Context(), deliveries); err != nil {
			fail(w, r, err)
			return
		}
		succeed(w)
	}
}

// deadLetterReason is what the broker says of a dead letter. It puts it among the application properties.
func deadLetterReason(m message) string {
	reason, _ := m.Properties["DeadLetterReason"].(string)
	if text, ok := m.Properties["DeadLetterErrorDescription"].(string); ok && text != "" {
		return fmt.Sprintf("%s: %s", reason, text)
	}
	return reason
}
