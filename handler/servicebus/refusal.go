package servicebus

import "fmt"

// Refused returns why each message can never be sent, by its id.
func (e *TooLargeError) Refused() map[string]string {
	reasons := make(map[string]string, len(e.Messages))
	for _, m := range e.Messages {
		reasons[m.ID] = fmt.Sprintf("it has %d bytes as encoded, more than the queue takes", m.Size)
	}
	return reasons
}
