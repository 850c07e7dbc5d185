package amqpstub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"
)

const q = "orders"

// start runs a broker with one queue and connects the client of the SDK to it.
func start(t *testing.T, o QueueOptions) (*Broker, *azservicebus.Client) {
	t.Helper()
	b := Start(t)
	b.CreateQueue(q, o)
	client, err := azservicebus.NewClientFromConnectionString(b.ConnectionString(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return b, client
}

func send(t *testing.T, client *azservicebus.Client, m *azservicebus.Message) {
	t.Helper()
	sender, err := client.NewSender(q, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close(t.Context())
	if err := sender.SendMessage(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
}

func message(id string) *azservicebus.Message {
	return &azservicebus.Message{MessageID: &id, Body: []byte("body of " + id), ApplicationProperties: map[string]any{"epoch": int64(7)}}
}

func receiver(t *testing.T, client *azservicebus.Client, o *azservicebus.ReceiverOptions) *azservicebus.Receiver {
	t.Helper()
	r, err := client.NewReceiverForQueue(q, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func receive(t *testing.T, r *azservicebus.Receiver) *azservicebus.ReceivedMessage {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ms, err := r.ReceiveMessages(ctx, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ms[0]
}

func deadLetters() *azservicebus.ReceiverOptions {
	return &azservicebus.ReceiverOptions{SubQueue: azservicebus.SubQueueDeadLetter}
}

func TestCompleteAndAbandon(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{})
	send(t, client, message("a"))
	send(t, client, message("b"))
	r := receiver(t, client, nil)
	a := receive(t, r)
	if a.MessageID != "a" || string(a.Body) != "body of a" || a.DeliveryCount != 1 || *a.SequenceNumber != 1 || a.ApplicationProperties["epoch"] != int64(7) {
		t.Errorf("received %+v", a)
	}
	if until := time.Until(*a.LockedUntil); until < 30*time.Second || until > 61*time.Second {
		t.Errorf("locked for %v, want a minute", until)
	}
	if got := b.Queue(q); got.Active != 1 || got.Locked != 1 {
		t.Errorf("%d active and %d locked, want 1 and 1", got.Active, got.Locked)
	}
	if err := r.AbandonMessage(t.Context(), a, nil); err != nil {
		t.Fatal(err)
	}
	a = receive(t, r)
	if a.MessageID != "a" || a.DeliveryCount != 2 {
		t.Errorf("received %s with delivery count %d, want a again with 2", a.MessageID, a.DeliveryCount)
	}
	if err := r.CompleteMessage(t.Context(), a, nil); err != nil {
		t.Fatal(err)
	}
	if got := b.Queue(q); len(got.Messages) != 1 || got.Messages[0].ID != "b" || string(got.Messages[0].Body) != "body of b" {
		t.Errorf("left %+v, want b", got.Messages)
	}
}

func TestDeadLetter(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{})
	send(t, client, message("a"))
	r := receiver(t, client, nil)
	reason, description := "poison", "not JSON"
	if err := r.DeadLetterMessage(t.Context(), receive(t, r), &azservicebus.DeadLetterOptions{Reason: &reason, ErrorDescription: &description}); err != nil {
		t.Fatal(err)
	}
	if got := b.Queue(q); got.DeadLetter != 1 || len(got.Messages) != 0 {
		t.Errorf("%+v, want one dead letter", got)
	}
	if got := b.Queue(q + "/$deadletterqueue").Messages[0].Properties["DeadLetterReason"]; got != reason {
		t.Errorf("reason %v", got)
	}
	d := receiver(t, client, deadLetters())
	m := receive(t, d)
	if m.MessageID != "a" || *m.DeadLetterReason != reason || *m.DeadLetterErrorDescription != description || *m.DeadLetterSource != q || m.ApplicationProperties["epoch"] != int64(7) {
		t.Errorf("dead letter %+v", m)
	}
	if err := d.CompleteMessage(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	if n := b.Queue(q).DeadLetter; n != 0 {
		t.Errorf("%d dead letters left", n)
	}
}

func TestMaxDeliveryCount(t *testing.T) {
	t.Parallel()
	_, client := start(t, QueueOptions{MaxDeliveryCount: 3})
	send(t, client, message("a"))
	r := receiver(t, client, nil)
	for range 3 {
		if err := r.AbandonMessage(t.Context(), receive(t, r), nil); err != nil {
			t.Fatal(err)
		}
	}
	if m := receive(t, receiver(t, client, deadLetters())); *m.DeadLetterReason != "MaxDeliveryCountExceeded" {
		t.Errorf("reason %q", *m.DeadLetterReason)
	}
}

func TestLocks(t *testing.T) {
	t.Parallel()
	_, client := start(t, QueueOptions{Lock: 300 * time.Millisecond})
	send(t, client, message("a"))
	r := receiver(t, client, nil)
	m := receive(t, r)
	first := *m.LockedUntil
	if err := r.RenewMessageLock(t.Context(), m, nil); err != nil {
		t.Fatal(err)
	}
	if !m.LockedUntil.After(first) {
		t.Errorf("renewed until %v, not after %v", m.LockedUntil, first)
	}
	again := receive(t, r) // waits for the lock to end
	if again.MessageID != "a" || again.DeliveryCount != 2 {
		t.Errorf("received %s with delivery count %d, want a again with 2", again.MessageID, again.DeliveryCount)
	}
	for name, err := range map[string]error{
		"complete": r.CompleteMessage(t.Context(), m, nil),
		"renew":    r.RenewMessageLock(t.Context(), m, nil),
	} {
		var sdk *azservicebus.Error
		if !errors.As(err, &sdk) || sdk.Code != azservicebus.CodeLockLost {
			t.Errorf("%s with a lost lock: %v, want lock lost", name, err)
		}
	}
}

func TestSettleByLockToken(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{})
	send(t, client, message("a"))
	m := receive(t, receiver(t, client, nil))
	other := receiver(t, client, nil)
	if err := other.CompleteMessage(t.Context(), &azservicebus.ReceivedMessage{LockToken: m.LockToken}, nil); err != nil {
		t.Fatal(err)
	}
	if got := b.Queue(q); len(got.Messages) != 0 {
		t.Errorf("left %+v", got.Messages)
	}
}

func TestReceiveAndDelete(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{})
	send(t, client, message("a"))
	r := receiver(t, client, &azservicebus.ReceiverOptions{ReceiveMode: azservicebus.ReceiveModeReceiveAndDelete})
	if m := receive(t, r); m.MessageID != "a" {
		t.Errorf("received %s", m.MessageID)
	}
	if got := b.Queue(q); len(got.Messages) != 0 {
		t.Errorf("left %+v", got.Messages)
	}
}

func TestDuplicateDetection(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{DuplicateDetection: true})
	for _, id := range []string{"a", "b", "a"} {
		send(t, client, message(id))
	}
	if got := b.Queue(q); len(got.Messages) != 2 || got.Duplicates != 1 {
		t.Errorf("%d messages and %d duplicates, want 2 and 1", len(got.Messages), got.Duplicates)
	}
}

func TestSessions(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{RequiresSession: true})
	sender, err := client.NewSender(q, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := message("a")
	if err := sender.SendMessage(t.Context(), m, nil); err == nil || !strings.Contains(err.Error(), "SessionId was not set") {
		t.Errorf("%v, want the session missed", err)
	}
	session := "s"
	m.SessionID = &session
	if err := sender.SendMessage(t.Context(), m, nil); err != nil {
		t.Error(err)
	}
	if got := b.Queue(q).Messages; len(got) != 1 || got[0].SessionID != "s" {
		t.Errorf("%+v", got)
	}
	if _, err := receiver(t, client, nil).ReceiveMessages(t.Context(), 1, nil); err == nil || !strings.Contains(err.Error(), "requires sessions") {
		t.Errorf("%v, want the receiver refused", err)
	}
}

func TestPeekAndSchedule(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{})
	sender, err := client.NewSender(q, nil)
	if err != nil {
		t.Fatal(err)
	}
	numbers, err := sender.ScheduleMessages(t.Context(), []*azservicebus.Message{message("never"), message("far")}, time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sender.ScheduleMessages(t.Context(), []*azservicebus.Message{message("soon")}, time.Now().Add(50*time.Millisecond), nil); err != nil {
		t.Fatal(err)
	}
	if err := sender.CancelScheduledMessages(t.Context(), numbers[:1], nil); err != nil {
		t.Fatal(err)
	}
	if err := sender.CancelScheduledMessages(t.Context(), numbers[:1], nil); err == nil {
		t.Error("cancelled twice")
	}
	r := receiver(t, client, nil)
	if m := receive(t, r); m.MessageID != "soon" {
		t.Errorf("received %s, want soon", m.MessageID)
	}
	peeked, err := r.PeekMessages(t.Context(), 10, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(peeked) != 2 || peeked[0].MessageID != "far" || peeked[0].State != azservicebus.MessageStateScheduled || peeked[1].MessageID != "soon" {
		t.Errorf("peeked %+v", peeked)
	}
	if got := b.Queue(q); got.Scheduled != 1 {
		t.Errorf("%d scheduled, want 1", got.Scheduled)
	}
}

func TestBatch(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{})
	sender, err := client.NewSender(q, nil)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := sender.NewMessageBatch(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"a", "b", "c"}
	for _, id := range want {
		m := message(id)
		m.Body = make([]byte, 60_000) // more than one frame in all
		if err := batch.AddMessage(m, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := sender.SendMessageBatch(t.Context(), batch, nil); err != nil {
		t.Fatal(err)
	}
	got := b.Queue(q).Messages
	for i, id := range want {
		if len(got) != len(want) || got[i].ID != id || len(got[i].Body) != 60_000 {
			t.Fatalf("%d messages, want %v", len(got), want)
		}
	}
	if n := b.Stats().Transfers; n != 1 {
		t.Errorf("%d transfers, want 1", n)
	}
}

// Nobody gets in without a token for the queue, whichever mechanism of SASL.
func TestAccess(t *testing.T) {
	t.Parallel()
	b := Start(t)
	b.CreateQueue(q, QueueOptions{})
	for name, sasl := range map[string]amqp.SASLType{"PLAIN": amqp.SASLTypePlain("user", "password"), "ANONYMOUS": amqp.SASLTypeAnonymous()} {
		conn, err := amqp.Dial(t.Context(), "amqp://"+b.Addr(), &amqp.ConnOptions{SASLType: sasl})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		session, err := conn.NewSession(t.Context(), nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err = session.NewSender(t.Context(), q, nil)
		var refused *amqp.Error
		if !errors.As(err, &refused) || refused.Condition != amqp.ErrCondUnauthorizedAccess {
			t.Errorf("%s: %v, want unauthorized", name, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestFaultsAreUsedInOrder(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{})
	b.CreateQueue("other", QueueOptions{})
	busy := Fault{On: OnSend, Queue: q, Kind: Reject, Condition: "amqp:not-allowed", Description: "first"}
	second := busy
	second.Description = "second"
	b.Plan(Fault{On: OnSend, Queue: "other", Kind: Silent}, Fault{On: OnSend, Kind: None}, busy, second)
	sender, err := client.NewSender(q, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"", "first", "second", ""} {
		err := sender.SendMessage(t.Context(), message("a"), nil)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("send %d: %v, want %q", i, err, want)
		}
	}
	if n := b.Stats().Planned; n != 1 {
		t.Errorf("%d faults left, want that of the other queue", n)
	}
}

// Sends that are answered in the same turn keep their own outcomes.
func TestOutcomesAreNotMixedUp(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{})
	sender, err := client.NewSender(q, nil)
	if err != nil {
		t.Fatal(err)
	}
	const n = 20
	for range n / 2 {
		b.Plan(Fault{On: OnSend, Kind: None}, Fault{On: OnSend, Kind: Reject, Condition: "amqp:not-allowed"})
	}
	b.Pause()
	results := make(chan error, n)
	for i := range n {
		go func() { results <- sender.SendMessage(context.Background(), message(fmt.Sprint(i)), nil) }()
	}
	b.Wait("all sends on their way", func(s Stats) bool { return s.Waiting == n })
	b.Resume()
	accepted := 0
	for range n {
		if err := <-results; err == nil {
			accepted++
		}
	}
	if stored := len(b.Queue(q).Messages); accepted != n/2 || stored != n/2 {
		t.Errorf("%d accepted and %d stored, want %d", accepted, stored, n/2)
	}
}

func TestPauseAndDisconnect(t *testing.T) {
	t.Parallel()
	b, client := start(t, QueueOptions{})
	b.Pause()
	done := make(chan error)
	go func() {
		sender, err := client.NewSender(q, nil)
		if err == nil {
			err = sender.SendMessage(context.Background(), message("a"), nil)
		}
		done <- err
	}()
	b.Wait("paused", func(s Stats) bool { return s.Waiting == 1 })
	if n := len(b.Queue(q).Messages); n != 0 {
		t.Errorf("%d messages while paused", n)
	}
	b.Resume()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	b.DisconnectAll()
	b.Wait("disconnected", func(s Stats) bool { return s.Open == 0 })
}

// A machine without Node.js fails the tests, with a word about what is missing.
func TestMissingNode(t *testing.T) {
	_, file, _, _ := runtime.Caller(0)
	t.Setenv("PATH", t.TempDir())
	if err := install(filepath.Dir(file)); err == nil || !strings.Contains(err.Error(), "Node.js") {
		t.Errorf("%v, want Node.js missed", err)
	}
}

// The lock file names no host to download from: npm takes the registry that it is configured with.
func TestLockFileNamesNoHost(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("package-lock.json")
	if err != nil {
		t.Fatal(err)
	}
	var lock struct {
		Packages map[string]struct {
			Resolved  string
			Integrity string
		}
	}
	if err := json.Unmarshal(b, &lock); err != nil {
		t.Fatal(err)
	}
	for name, p := range lock.Packages {
		if p.Resolved != "" && !strings.HasPrefix(p.Resolved, "https://registry.npmjs.org/") {
			t.Errorf("%s: resolved %s", name, p.Resolved)
		}
		if name != "" && p.Integrity == "" {
			t.Errorf("%s has no integrity", name)
		}
	}
	if len(lock.Packages) < 2 {
		t.Errorf("%d packages", len(lock.Packages))
	}
}
