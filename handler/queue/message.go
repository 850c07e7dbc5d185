// Package queue is the shape of what travels over Service Bus: the message, and the CloudEvent inside it.
// The senders (embedded, Service Bus) and the worker share it; it does no I/O.
package queue

import "time"

// Names of the queues (design, section 4). The queue that receives events is a setting, EVENTS_QUEUE.
const (
	ConnectivityEvents = "connectivity-events"
	Heartbeats         = "heartbeats"
	// RejectedSuffix is appended to the name of a queue for the items that can never succeed (design D14).
	RejectedSuffix = "-rejected"
)

// MaxDeliveryCount is how often the broker delivers a message of the queues that are read before it gives it up. While a
// part is away that a batch needs, the batch waits up to half its lock of 5 minutes before it goes back: 600 deliveries
// of 150 s outlast 25 hours. The templates make the queues with it.
const MaxDeliveryCount = 600

// Message is one message as a sender takes it.
type Message struct {
	// ID is the MessageId: duplicate detection drops a second message with the same one. At most 128 characters.
	ID string
	// Subject is the event type.
	Subject string
	// SessionID is for foreign consumers; our own queue has no sessions.
	SessionID string
	// ContentType is the MIME type of Body.
	ContentType string
	// Properties are the application properties, for filters: strings, int64 and bool.
	Properties map[string]any
	Body       []byte
	// NotBefore is when the queue gives the message out at the earliest, by the broker's clock; zero is at once.
	NotBefore time.Time
}
