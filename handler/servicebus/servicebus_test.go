package servicebus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"go.uber.org/goleak"

	"userconnectivity/handler/queue"
	"userconnectivity/handler/servicebus/amqpstub"
)

const events = queue.ConnectivityEvents

// TestMain finds what is left running after all senders were closed.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start runs a broker with an events queue and returns a sender to it, with short pauses. Close must leave nothing.
func start(t testing.TB, configure func(*Config)) (*amqpstub.Broker, *Sender) {
	t.Helper()
	b := amqpstub.Start(t)
	b.CreateQueue(events, amqpstub.QueueOptions{DuplicateDetection: true})
	cfg := Config{ConnectionString: b.ConnectionString(), KeepWarm: -1}
	if configure != nil {
		configure(&cfg)
	}
	return b, open(t, cfg)
}

func open(t testing.TB, cfg Config) *Sender {
	t.Helper()
	cfg.Logger = slog.New(slog.DiscardHandler)
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.backoff = time.Millisecond
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

func messages(prefix string, n int) []queue.Message {
	msgs := make([]queue.Message, n)
	for i := range msgs {
		msgs[i] = queue.Message{ID: fmt.Sprintf("%s-%d", prefix, i), Body: []byte(prefix)}
	}
	return msgs
}

func ids[T any](msgs []T, id func(T) string) []string {
	out := make([]string, len(msgs))
	for i, m := range msgs {
		out[i] = id(m)
	}
	return out
}

func sentIDs(msgs []queue.Message) []string {
	return ids(msgs, func(m queue.Message) string { return m.ID })
}

func storedIDs(q amqpstub.Queue) []string {
	return ids(q.Messages, func(m amqpstub.Message) string { return m.ID })
}

// must fails the test unless the queue holds exactly these messages in this order.
func must(t *testing.T, b *amqpstub.Broker, name string, want []queue.Message) {
	t.Helper()
	if got := storedIDs(b.Queue(name)); !slices.Equal(got, sentIDs(want)) {
		t.Fatalf("queue %s holds %d messages %.200q, want %d %.200q", name, len(got), got, len(want), sentIDs(want))
	}
}

func TestSendKeepsEveryField(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	m := queue.Message{
		ID: "aaaaaaaaaaaaa-bbbbbbbbbbbbbbbb", Subject: "userconnectivity.user.offline", SessionID: "ann",
		ContentType: "application/cloudevents+json; charset=utf-8",
		Properties:  map[string]any{"type": "user.offline", "user": "ann", "epoch": int64(1_700_000_000_123), "late": true},
		Body:        []byte(`{"id":"x"}`),
	}
	other := queue.Message{ID: "plain", Body: []byte("a batch has two")}
	if err := s.Send(t.Context(), events, []queue.Message{m, other}); err != nil {
		t.Fatal(err)
	}

	// What a consumer of Service Bus sees, with the types of its properties.
	client, err := azservicebus.NewClientFromConnectionString(b.ConnectionString(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close(context.Background())
	receiver, err := client.NewReceiverForQueue(events, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got []*azservicebus.ReceivedMessage
	for len(got) < 2 {
		more, err := receiver.ReceiveMessages(t.Context(), 2, nil)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, more...)
	}
	g := got[0]
	if g.MessageID != m.ID || *g.Subject != m.Subject || *g.SessionID != m.SessionID || *g.ContentType != m.ContentType || !bytes.Equal(g.Body, m.Body) {
		t.Errorf("received %+v, want %+v", g, m)
	}
	for name, want := range m.Properties {
		if got := g.ApplicationProperties[name]; got != want {
			t.Errorf("property %s is %T %v, want %T %v", name, got, got, want, want)
		}
	}
	if p := got[1]; p.MessageID != "plain" || p.Subject != nil || p.SessionID != nil || p.ContentType != nil || len(p.ApplicationProperties) != 0 {
		t.Errorf("received %+v, want nothing but id and body", p)
	}
}

func TestSendRefusesBadMessages(t *testing.T) {
	t.Parallel()
	s := open(t, Config{ConnectionString: "Endpoint=sb://127.0.0.1:1;SharedAccessKeyName=n;SharedAccessKey=k;UseDevelopmentEmulator=true"})
	good := queue.Message{ID: "good"}
	for name, tc := range map[string]struct {
		bad  queue.Message
		want string
	}{
		"no id":         {queue.Message{}, "message 2 of 2 has no id"},
		"long id":       {queue.Message{ID: strings.Repeat("ä", 129)}, "longer than 128"},
		"long session":  {queue.Message{ID: "x", SessionID: strings.Repeat("s", 129)}, "longer than 128"},
		"id not UTF-8":  {queue.Message{ID: "\xff"}, "not UTF-8"},
		"not UTF-8":     {queue.Message{ID: "x", Properties: map[string]any{"f": "\xff"}}, "property \"f\" is not UTF-8"},
		"property type": {queue.Message{ID: "x", Properties: map[string]any{"f": 1.5}}, "property f is a float64"},
	} {
		// Nothing listens there: the refusal comes before any I/O.
		err := s.Send(t.Context(), events, []queue.Message{good, tc.bad})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	if err := s.Send(t.Context(), events, nil); err != nil {
		t.Errorf("nothing to send: %v", err)
	}
}

// TestNotBefore: Service Bus holds back what is to come out later.
func TestNotBefore(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	later := queue.Message{ID: "later", NotBefore: time.Now().Add(time.Hour)}
	if err := s.Send(t.Context(), events, []queue.Message{later, {ID: "now"}}); err != nil {
		t.Fatal(err)
	}
	if q := b.Queue(events); q.Scheduled != 1 || q.Active != 1 {
		t.Errorf("%d scheduled, %d active", q.Scheduled, q.Active)
	}
}

func TestSendKeepsOrderOverBatches(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	b.CreateQueue("small", amqpstub.QueueOptions{MaxMessageBytes: 2048})
	msgs := messages("m", 200)
	if err := s.Send(t.Context(), "small", msgs); err != nil {
		t.Fatal(err)
	}
	must(t, b, "small", msgs)
	if n := b.Stats().Transfers; n < 5 || n > 100 {
		t.Errorf("%d transfers for 200 messages, want them in batches of 2 KiB", n)
	}
}

func TestMessagesMayBeChangedAfterSend(t *testing.T) {
	t.Parallel()
	b, s := start(t, func(c *Config) { c.SendTimeout = 200 * time.Millisecond })
	b.Plan(amqpstub.Fault{On: amqpstub.OnSend, Kind: amqpstub.Silent, Times: amqpstub.Forever})
	msgs := []queue.Message{{ID: "a", Body: []byte("body"), Properties: map[string]any{"p": "v"}}, {ID: "b"}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	for range 20 { // under the race detector: steps that were given up still run
		_ = s.Send(ctx, events, msgs)
		msgs[0].Body[0], msgs[0].ID = 'x', "c"
		msgs[0].Properties["p"] = "w"
	}
}

func TestTooLargeMessagesDoNotStopTheOthers(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	b.CreateQueue("small", amqpstub.QueueOptions{MaxMessageBytes: 4096})
	msgs := messages("m", 5)
	msgs[1].Body = make([]byte, 5000)
	msgs[4].Body = make([]byte, 6000)
	err := s.Send(t.Context(), "small", msgs)
	var tooLarge *TooLargeError
	if !errors.As(err, &tooLarge) {
		t.Fatalf("%v, want a *TooLargeError", err)
	}
	if got := ids(tooLarge.Messages, func(m TooLarge) string { return m.ID }); !slices.Equal(got, []string{"m-1", "m-4"}) {
		t.Errorf("too large: %v, want m-1 and m-4", got)
	}
	if size := tooLarge.Messages[0].Size; size < 5000 || size > 5500 {
		t.Errorf("size %d, want the encoded size of 5000 bytes", size)
	}
	for _, want := range []string{"small", "m-1", "m-4"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	must(t, b, "small", []queue.Message{msgs[0], msgs[2], msgs[3]})
}

func TestLargeMessageGoesAlone(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	b.CreateQueue("large", amqpstub.QueueOptions{MaxMessageBytes: 100_000, MaxBatchBytes: 4096})
	msgs := messages("m", 3)
	msgs[1].Body = make([]byte, 50_000)
	if err := s.Send(t.Context(), "large", msgs); err != nil {
		t.Fatal(err)
	}
	must(t, b, "large", msgs)
}

func TestBrokerCountsSizesDifferently(t *testing.T) {
	t.Parallel()
	refuse := func(kind string, times int) amqpstub.Fault {
		return amqpstub.Fault{
			On: amqpstub.OnSend, Queue: events, Kind: kind, Times: times, Condition: "amqp:link:message-size-exceeded",
			Description: "The received message (delivery-id:0, size:300000 bytes) exceeds the limit (262144 bytes) currently allowed on the link.",
		}
	}
	for _, kind := range []string{amqpstub.Reject, amqpstub.Detach} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			b, s := start(t, nil)
			msgs := messages("m", 100)
			b.Plan(refuse(kind, 3))
			if err := s.Send(t.Context(), events, msgs); err != nil {
				t.Fatal(err)
			}
			must(t, b, events, msgs)

			// A message refused alone again and again is too large; the next one is not blamed for it.
			b.Plan(refuse(kind, 10))
			err := s.Send(t.Context(), events, messages("x", 1))
			var tooLarge *TooLargeError
			if !errors.As(err, &tooLarge) || tooLarge.Messages[0].ID != "x-0" {
				t.Fatalf("%v, want x-0 too large", err)
			}
			b.ClearFaults()
			if err := s.Send(t.Context(), events, messages("y", 1)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOneClientAndOneLinkPerQueue(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	b.CreateQueue("second", amqpstub.QueueOptions{})
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			if err := s.Send(t.Context(), []string{events, "second"}[i%2], messages(fmt.Sprint("m", i), 3)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if st := b.Stats(); st.Connections != 1 || st.Attached != 2 {
		t.Errorf("%d connections and %d links, want 1 and 2", st.Connections, st.Attached)
	}
	if n := b.Queue(events).Active + b.Queue("second").Active; n != 150 {
		t.Errorf("%d messages, want 150", n)
	}
}

func TestFailedAttemptIsNotRemembered(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	msgs := messages("m", 1)
	if err := s.Send(t.Context(), "later", msgs); err == nil {
		t.Fatal("sent to a queue that does not exist")
	}
	b.CreateQueue("later", amqpstub.QueueOptions{})
	if err := s.Send(t.Context(), "later", msgs); err != nil {
		t.Fatal(err)
	}
	b.DeleteQueue("later")
	if err := s.Send(t.Context(), "later", msgs); err == nil {
		t.Fatal("sent to a queue that was deleted")
	}
	b.CreateQueue("later", amqpstub.QueueOptions{})
	if err := s.Send(t.Context(), "later", msgs); err != nil {
		t.Fatal(err)
	}
	must(t, b, "later", msgs)
}

// Every fault that passes: Send succeeds, and the queue holds each message once.
func TestTransientFaults(t *testing.T) {
	t.Parallel()
	const send, attach, token = amqpstub.OnSend, amqpstub.OnAttach, amqpstub.OnToken
	idle := "The link 'x' is force detached. Code: publisher(link1). Details: AmqpMessagePublisher.IdleTimerExpired: Idle timeout: 00:10:00."
	for name, tc := range map[string]struct {
		fault amqpstub.Fault
		fresh bool // the fault hits the first use
	}{
		"slow":                      {fault: amqpstub.Fault{On: send, Kind: amqpstub.Slow, Delay: 50 * time.Millisecond}},
		"detached":                  {fault: amqpstub.Fault{On: send, Kind: amqpstub.Detach, Condition: "amqp:link:detach-forced", Description: idle}},
		"detached, again":           {fault: amqpstub.Fault{On: send, Kind: amqpstub.Detach, Condition: "amqp:link:detach-forced", Description: idle, Times: 3}},
		"detached, internal error":  {fault: amqpstub.Fault{On: send, Kind: amqpstub.Detach}},
		"detached, token expired":   {fault: amqpstub.Fault{On: send, Kind: amqpstub.Detach, Condition: "amqp:unauthorized-access", Description: "ExpiredToken: The token is expired."}},
		"rejected, internal error":  {fault: amqpstub.Fault{On: send, Kind: amqpstub.Reject, Times: 2}},
		"rejected, timeout":         {fault: amqpstub.Fault{On: send, Kind: amqpstub.Reject, Condition: "com.microsoft:timeout", Times: 2}},
		"rejected, cancelled":       {fault: amqpstub.Fault{On: send, Kind: amqpstub.Reject, Condition: "com.microsoft:operation-cancelled", Times: 2}},
		"rejected, unknown":         {fault: amqpstub.Fault{On: send, Kind: amqpstub.Reject, Condition: "com.microsoft:not-seen-before", Times: 2}},
		"disconnected":              {fault: amqpstub.Fault{On: send, Kind: amqpstub.Disconnect, Times: 2}},
		"acknowledgement lost":      {fault: amqpstub.Fault{On: send, Kind: amqpstub.LoseAck, Times: 2}},
		"no answer":                 {fault: amqpstub.Fault{On: send, Kind: amqpstub.Silent}},
		"attach refused":            {fault: amqpstub.Fault{On: attach, Queue: events, Kind: amqpstub.Reject, Condition: "com.microsoft:operation-cancelled"}, fresh: true},
		"attach without an answer":  {fault: amqpstub.Fault{On: attach, Queue: events, Kind: amqpstub.Silent}, fresh: true},
		"token without an answer":   {fault: amqpstub.Fault{On: token, Kind: amqpstub.Silent}, fresh: true},
		"token service unavailable": {fault: amqpstub.Fault{On: token, Kind: amqpstub.Reject, Status: 503, Description: "busy"}, fresh: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, s := start(t, func(c *Config) {
				if tc.fault.Kind == amqpstub.Silent {
					c.SendTimeout = 500 * time.Millisecond
				}
			})
			warm := messages("warm", 1)
			if tc.fresh {
				warm = nil
			} else if err := s.Send(t.Context(), events, warm); err != nil {
				t.Fatal(err)
			}
			b.Plan(tc.fault)
			msgs := messages("m", 10)
			if err := s.Send(t.Context(), events, msgs); err != nil {
				t.Fatal(err)
			}
			must(t, b, events, append(warm, msgs...))
			if n := b.Stats().Planned; n != 0 {
				t.Errorf("%d faults were not met", n)
			}
			if q := b.Queue(events); (q.Duplicates > 0) != (tc.fault.Kind == amqpstub.LoseAck) {
				t.Errorf("%d duplicates were dropped", q.Duplicates)
			}
		})
	}
}

func TestThrottling(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]amqpstub.Fault{
		"rejected": amqpstub.ServerBusy(events),
		"detached": {On: amqpstub.OnSend, Queue: events, Kind: amqpstub.Detach, Condition: "com.microsoft:server-busy"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, s := start(t, nil)
			b.CreateQueue("second", amqpstub.QueueOptions{})
			if err := s.Ping(t.Context(), "second"); err != nil {
				t.Fatal(err)
			}
			b.Plan(fault)
			began := time.Now()
			msgs := messages("m", 3)
			var all sync.WaitGroup
			all.Go(func() {
				if err := s.Send(t.Context(), events, msgs); err != nil {
					t.Error(err)
				}
			})
			b.Wait("throttled", func(st amqpstub.Stats) bool { return st.Transfers == 1 && st.Planned == 0 })
			all.Wait()
			if waited := time.Since(began); waited < defaultThrottleWait {
				t.Errorf("sent again after %v, want not before %v", waited, defaultThrottleWait)
			}
			must(t, b, events, msgs)

			// The namespace is throttled, so every queue waits.
			s.busy(time.Hour)
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := s.Send(ctx, "second", messages("s", 1)); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v, want the deadline while the namespace is throttled", err)
			}
			if n := b.Queue("second").Active; n != 0 {
				t.Errorf("%d messages sent while throttled", n)
			}
		})
	}
}

func TestThrottleWait(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		amqpstub.ServerBusy("").Description:                        2 * time.Second,
		"Error code : 50002. Please wait 4 seconds and try again.": 4 * time.Second,
		"Please wait 0 seconds":                                    2 * time.Second,
		"Please wait 86400 seconds":                                30 * time.Second,
		"busy":                                                     2 * time.Second,
	} {
		if got := throttleWait(text); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// The watchdog does not need a context with an end, and leaves no goroutine (TestMain).
func TestSendThatNeverReturns(t *testing.T) {
	t.Parallel()
	b, s := start(t, func(c *Config) { c.SendTimeout = time.Second })
	if err := s.Ping(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	b.Plan(amqpstub.Fault{On: amqpstub.OnSend, Kind: amqpstub.Silent})
	msgs := messages("m", 5)
	if err := s.Send(context.Background(), events, msgs); err != nil {
		t.Fatal(err)
	}
	must(t, b, events, msgs)
	if n := b.Stats().Connections; n != 2 {
		t.Errorf("%d connections, want a second client after the watchdog", n)
	}
	b.Wait("old client closed", func(st amqpstub.Stats) bool { return st.Open == 1 })
}

func TestBrokerHangs(t *testing.T) {
	t.Parallel()
	b, s := start(t, func(c *Config) { c.SendTimeout = 150 * time.Millisecond })
	if err := s.Send(t.Context(), events, messages("m", 1)); err != nil {
		t.Fatal(err)
	}
	b.Freeze()
	err := s.Send(context.Background(), events, messages("n", 1))
	b.Thaw()
	if err == nil || !strings.Contains(err.Error(), "no answer within 150ms") {
		t.Fatalf("%v, want no answer", err)
	}
	if err := s.Send(t.Context(), events, messages("n", 1)); err != nil {
		t.Fatal(err)
	}
	if got := storedIDs(b.Queue(events)); !slices.Equal(got, []string{"m-0", "n-0"}) {
		t.Errorf("queue holds %v", got)
	}
}

// A caller who gives up does not cost the others their connection.
func TestCallerGivesUp(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	if err := s.Ping(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	b.Pause()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() { result <- s.Send(ctx, events, messages("m", 500)) }()
	b.Wait("send on its way", func(st amqpstub.Stats) bool { return st.Waiting == 1 })
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, want context.Canceled", err)
	}
	b.Resume()
	if err := s.Send(t.Context(), events, messages("m", 500)); err != nil {
		t.Fatal(err)
	}
	must(t, b, events, messages("m", 500))
	if st := b.Stats(); st.Connections != 1 || st.Attached != 1 {
		t.Errorf("%d connections and %d links, want one of each", st.Connections, st.Attached)
	}
}

func TestDeadlineNamesTheLastFault(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	b.Plan(amqpstub.ServerBusy(events))
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err := s.Send(ctx, events, messages("m", 1))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "throttled") {
		t.Errorf("%v, want the deadline and the throttling", err)
	}
}

// The first message after an idle detach is a matter of one new link, not of a wait between attempts.
func TestFirstSendAfterIdleDetach(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	if err := s.Send(t.Context(), events, messages("m", 1)); err != nil {
		t.Fatal(err)
	}
	s.backoff = time.Hour // any pause between attempts would be seen
	b.IdleDetach(20 * time.Millisecond)
	b.Wait("idle detach", func(st amqpstub.Stats) bool { return st.IdleDetached == 1 })
	b.IdleDetach(0)
	began := time.Now()
	if err := s.Send(t.Context(), events, messages("n", 1)); err != nil {
		t.Fatal(err)
	}
	t.Logf("first send after an idle detach took %v", time.Since(began))
	if st := b.Stats(); st.Connections != 1 || st.Attached != 2 {
		t.Errorf("%d connections and %d links, want a second link on the first connection", st.Connections, st.Attached)
	}
}

func TestIdleLinksAreRenewedInTime(t *testing.T) {
	t.Parallel()
	b, s := start(t, func(c *Config) { c.KeepWarm = 40 * time.Millisecond })
	if err := s.Send(t.Context(), events, messages("m", 1)); err != nil {
		t.Fatal(err)
	}
	b.Wait("renewals", func(st amqpstub.Stats) bool { return st.Attached >= 4 })
	began := time.Now()
	if err := s.Send(t.Context(), events, messages("n", 1)); err != nil {
		t.Fatal(err)
	}
	t.Logf("first send after renewals took %v", time.Since(began))
	if st := b.Stats(); st.Connections != 1 || st.Transfers != 2 {
		t.Errorf("%d connections and %d transfers, want 1 and 2: a renewal sends nothing", st.Connections, st.Transfers)
	}
}

func TestLostConnectionIsReplacedBeforeTheNextSend(t *testing.T) {
	t.Parallel()
	b, s := start(t, func(c *Config) { c.KeepWarm = time.Hour })
	if err := s.Send(t.Context(), events, messages("m", 1)); err != nil {
		t.Fatal(err)
	}
	b.DisconnectAll()
	b.Wait("a new link without a send", func(st amqpstub.Stats) bool { return st.Connections == 2 && st.Open == 1 && st.Attached == 2 })
	began := time.Now()
	if err := s.Send(t.Context(), events, messages("n", 1)); err != nil {
		t.Fatal(err)
	}
	t.Logf("first send after a lost connection took %v", time.Since(began))
	if n := b.Stats().Attached; n != 2 {
		t.Errorf("%d links, want the send on the one that was ready", n)
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	if err := s.Ping(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	if st := b.Stats(); st.Attached != 1 || st.Transfers != 0 {
		t.Errorf("%d links and %d transfers, want 1 and 0", st.Attached, st.Transfers)
	}
	s.fresh = 0 // from now on every ping proves it
	if err := s.Ping(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	if n := b.Stats().Attached; n != 2 {
		t.Errorf("%d links, want a new one", n)
	}
	b.DeleteQueue(events)
	if err := s.Ping(t.Context(), events); err == nil || !strings.Contains(err.Error(), "no such queue") {
		t.Errorf("%v, want no such queue", err)
	}
	b.CreateQueue(events, amqpstub.QueueOptions{})
	if err := s.Ping(t.Context(), events); err != nil {
		t.Error(err)
	}
	if err := s.Send(t.Context(), events, messages("m", 1)); err != nil {
		t.Error(err)
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	b, s := start(t, nil)
	if err := s.Ping(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	b.Pause()
	result := make(chan error)
	go func() { result <- s.Send(context.Background(), events, messages("m", 1)) }()
	b.Wait("send on its way", func(st amqpstub.Stats) bool { return st.Waiting == 1 })
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	if err := s.Send(t.Context(), events, messages("m", 1)); !errors.Is(err, ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	if err := s.Ping(t.Context(), events); !errors.Is(err, ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	b.Wait("connection closed", func(st amqpstub.Stats) bool { return st.Open == 0 })
}

// stubborn is a credential that ignores its context until released.
type stubborn struct{ asked, release chan struct{} }

func (c stubborn) GetToken(context.Context, tokenOptions) (azcore.AccessToken, error) {
	select {
	case c.asked <- struct{}{}:
	default: // nobody waits for a second one
	}
	<-c.release
	return azcore.AccessToken{}, errors.New("released")
}

func TestCredentialThatNeverReturns(t *testing.T) {
	t.Parallel()
	b := amqpstub.Start(t)
	cred := stubborn{make(chan struct{}, 1), make(chan struct{})}
	s := entra(t, b, cred)
	s.cfg.SendTimeout = 50 * time.Millisecond
	if err := s.Send(context.Background(), events, messages("m", 1)); err == nil || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("%v, want no answer", err)
	}
	<-cred.asked
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want the deadline: a goroutine hangs in the credential", err)
	}
	close(cred.release)
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// A thousand messages through random faults, from several callers that repeat what failed: every id is in the queue
// once.
func TestRandomFaults(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	b, s := start(t, func(c *Config) { c.SendTimeout = 250 * time.Millisecond })
	send := func(kind, condition string) amqpstub.Fault {
		return amqpstub.Fault{On: amqpstub.OnSend, Queue: events, Kind: kind, Condition: condition, Delay: 5 * time.Millisecond}
	}
	kinds := []amqpstub.Fault{
		send(amqpstub.None, ""), send(amqpstub.None, ""), send(amqpstub.None, ""),
		send(amqpstub.Slow, ""),
		send(amqpstub.Reject, "com.microsoft:timeout"), send(amqpstub.Reject, "amqp:internal-error"),
		send(amqpstub.Detach, "amqp:link:detach-forced"), send(amqpstub.Detach, "amqp:internal-error"),
		send(amqpstub.Disconnect, ""), send(amqpstub.LoseAck, ""), send(amqpstub.LoseAck, ""),
		{On: amqpstub.OnAttach, Queue: events, Kind: amqpstub.Reject, Condition: "com.microsoft:operation-cancelled"},
		{On: amqpstub.OnToken, Kind: amqpstub.Reject, Status: 503, Description: "busy"},
	}
	faults := make([]amqpstub.Fault, 120)
	for i := range faults {
		faults[i] = kinds[random.IntN(len(kinds))]
	}
	faults[20], faults[70] = send(amqpstub.Silent, ""), send(amqpstub.Silent, "")
	faults[50] = send(amqpstub.LoseAck, "")
	b.Plan(faults...)

	const callers, each = 4, 250
	var all sync.WaitGroup
	var want []string
	for c := range callers {
		msgs := messages(fmt.Sprint("caller", c), each)
		want = append(want, sentIDs(msgs)...)
		sizes := []int{}
		for left := each; left > 0; left -= sizes[len(sizes)-1] {
			sizes = append(sizes, min(left, 1+random.IntN(20)))
		}
		all.Go(func() {
			for _, n := range sizes {
				for s.Send(t.Context(), events, msgs[:n]) != nil && t.Context().Err() == nil {
				}
				msgs = msgs[n:]
			}
		})
	}
	all.Wait()
	st, q := b.Stats(), b.Queue(events)
	got := storedIDs(q)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%d messages of %d are in the queue", len(got), len(want))
	}
	if st.Received-q.Duplicates != len(want) {
		t.Errorf("%d received, %d dropped as duplicates, want %d left", st.Received, q.Duplicates, len(want))
	}
	t.Logf("%d transfers, %d duplicates dropped, %d connections, %d faults left", st.Transfers, q.Duplicates, st.Connections, st.Planned)
}

func BenchmarkSend(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			broker, s := start(b, nil)
			broker.CreateQueue("bench", amqpstub.QueueOptions{DuplicateDetection: true})
			msgs := messages("m", n)
			for i := range msgs {
				msgs[i].Body = make([]byte, 500)
				msgs[i].Properties = map[string]any{"type": "user.offline", "user": "ann", "epoch": int64(1), "reason": "expired"}
			}
			if err := s.Ping(b.Context(), "bench"); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			sent := 0
			for b.Loop() {
				for i := range msgs {
					msgs[i].ID = fmt.Sprintf("%d", sent+i)
				}
				if err := s.Send(b.Context(), "bench", msgs); err != nil {
					b.Fatal(err)
				}
				sent += n
			}
			b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "msgs/s")
		})
	}
}
