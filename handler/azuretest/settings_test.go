package azuretest

import (
	"strings"
	"testing"

	"userconnectivity/handler/servicebus/amqpstub"
)

var (
	loseAck = amqpstub.Fault{On: amqpstub.OnSend, Queue: eventsQueue, Kind: amqpstub.LoseAck}
	busy    = amqpstub.ServerBusy(eventsQueue)
)

// says checks that a text for people has all these parts, and no secret.
func says(tb testing.TB, text string, parts ...string) {
	tb.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			tb.Errorf("%q\ndoes not say %q", text, part)
		}
	}
	for _, secret := range []string{amqpstub.Key, accountKey} {
		if strings.Contains(text, secret) {
			tb.Errorf("%q\ntells a secret", text)
		}
	}
}
