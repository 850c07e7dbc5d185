package localhost

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var testTime = time.Date(2026, 1, 15, 10, 0, 0, 0, time.UTC)

func newBroker(t *testing.T, path string, lock time.Duration, deliveries int) *broker {
	t.Helper()
	b, err := openBroker(t.Context(), path, lock, deliveries)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.close() })
	return b
}

func put(t *testing.T, b *broker, queue string, ids ...string) {
	t.Helper()
	var messages []message
	for _, id := range ids {
		messages = append(messages, message{ID: id, Subject: "s", Body: []byte("body of " + id)})
	}
	if err := b.enqueue(t.Context(), queue, messages); err != nil {
		t.Fatal(err)
	}
}

func take(t *testing.T, b *broker, queue string, limit int) delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	d, err := b.receive(ctx, queue, limit)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func ids(messages []message) string {
	var s []string
	for _, m := range messages {
		s = append(s, fmt.Sprintf("%s/%d", m.ID, m.DeliveryCount))
	}
	return strings.Join(s, " ")
}

func wantCounts(t *testing.T, b *broker, queue string, want queueCounts) {
	t.Helper()
	got, err := b.counts(t.Context(), queue)
	if err != nil || got != want {
		t.Errorf("%s: counts %+v (%v), want %+v", queue, got, err, want)
	}
}

func TestReceiveCompleteAbandon(t *testing.T) {
	t.Parallel()
	b := newBroker(t, filepath.Join(t.TempDir(), "q.db"), time.Minute, 10)
	put(t, b, "q", "a", "b", "c")
	put(t, b, "other", "x")
	first := take(t, b, "q", 2)
	if got := ids(first.messages); got != "a/1 b/1" {
		t.Errorf("received %s", got)
	}
	second := take(t, b, "q", 2)
	if got := ids(second.messages); got != "c/1" {
		t.Errorf("received %s", got)
	}
	wantCounts(t, b, "q", queueCounts{Locked: 3})
	if err := b.abandon(t.Context(), first, true); err != nil {
		t.Fatal(err)
	}
	if err := b.complete(t.Context(), second); err != nil {
		t.Fatal(err)
	}
	wantCounts(t, b, "q", queueCounts{Active: 2})
	again := take(t, b, "q", 10)
	if got := ids(again.messages); got != "a/2 b/2" {
		t.Errorf("received %s", got)
	}
	if err := b.complete(t.Context(), first); !errors.Is(err, errLockLost) {
		t.Errorf("complete under an old lock: %v", err)
	}
	if err := b.abandon(t.Context(), again, false); err != nil { // never reached the handler
		t.Fatal(err)
	}
	if got := ids(take(t, b, "q", 10).messages); got != "a/2 b/2" {
		t.Errorf("received %s", got)
	}
}

// TestNotBefore: a message that is to come out later holds up no other, and comes by itself.
func TestNotBefore(t *testing.T) {
	t.Parallel()
	b := newBroker(t, filepath.Join(t.TempDir(), "q.db"), time.Minute, 10)
	at := time.Now().Add(time.Second).Truncate(time.Millisecond)
	if err := b.enqueue(t.Context(), "q", []message{{ID: "later", EnqueuedAt: at}, {ID: "now"}, {ID: "past", EnqueuedAt: at.Add(-time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	d := take(t, b, "q", 2)
	if got := ids(d.messages); got != "now/1 past/1" {
		t.Errorf("received %s", got)
	}
	if old := d.messages[1].EnqueuedAt; at.Sub(old) > time.Minute {
		t.Errorf("one whose time has passed is enqueued %v", old)
	}
	d = take(t, b, "q", 10)
	if got := ids(d.messages); got != "later/1" || time.Now().Before(at) || !d.messages[0].EnqueuedAt.Equal(at) {
		t.Errorf("received %s, enqueued %v, want %v", got, d.messages[0].EnqueuedAt, at)
	}
}

func TestReceiveIsWokenByEnqueue(t *testing.T) {
	t.Parallel()
	b := newBroker(t, filepath.Join(t.TempDir(), "q.db"), time.Minute, 10)
	got := make(chan delivery)
	for range 2 {
		go func() { got <- take(t, b, "q", 1) }()
	}
	put(t, b, "q", "a")
	put(t, b, "q", "b")
	next(t, got)
	next(t, got)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		_, err := b.receive(ctx, "empty", 1)
		ended <- err
	}()
	cancel()
	if err := next(t, ended); !errors.Is(err, context.Canceled) {
		t.Errorf("receive ended with %v", err)
	}
}

func TestLocksExpire(t *testing.T) {
	t.Parallel()
	b := newBroker(t, filepath.Join(t.TempDir(), "q.db"), 20*time.Millisecond, 3)
	put(t, b, "q", "a")
	for i := 1; i <= 3; i++ {
		d := take(t, b, "q", 1) // waits for the end of the lock before
		if got := ids(d.messages); got != fmt.Sprintf("a/%d", i) {
			t.Errorf("received %s", got)
		}
	}
	// The last delivery is over when its lock is; whoever receives next finds that out.
	ctx, cancel := context.WithCancel(t.Context())
	var receiver sync.WaitGroup
	receiver.Go(func() { _, _ = b.receive(ctx, "q", 1) })
	dead := take(t, b, "q"+deadLetterSuffix, 1)
	cancel()
	receiver.Wait()
	if got := ids(dead.messages); got != "a/4" || dead.messages[0].DeadLetterReason != "MaxDeliveryCountExceeded" {
		t.Errorf("dead letters %+v", dead.messages)
	}
}

func TestCompleteAfterTheLock(t *testing.T) {
	t.Parallel()
	b := newBroker(t, filepath.Join(t.TempDir(), "q.db"), time.Minute, 10)
	put(t, b, "q", "a")
	d := take(t, b, "q", 1)
	b.now = func() time.Time { return time.Now().Add(2 * time.Minute) }
	if err := b.complete(t.Context(), d); !errors.Is(err, errLockLost) {
		t.Errorf("complete: %v", err)
	}
	wantCounts(t, b, "q", queueCounts{Active: 1})
}

func TestDeadLetter(t *testing.T) {
	t.Parallel()
	b := newBroker(t, filepath.Join(t.TempDir(), "q.db"), time.Minute, 2)
	put(t, b, "q", "bad", "good")
	for range 2 {
		if err := b.abandon(t.Context(), take(t, b, "q", 1), true); err != nil {
			t.Fatal(err)
		}
	}
	wantCounts(t, b, "q", queueCounts{Active: 1, DeadLetter: 1})
	dead := take(t, b, "q"+deadLetterSuffix, 10)
	if len(dead.messages) != 1 || dead.messages[0].DeadLetterDescription != "Message could not be consumed after 2 delivery attempts." {
		t.Fatalf("dead letters %+v", dead.messages)
	}
	// A dead letter is never lost to a further dead-letter queue.
	for range 5 {
		if err := b.abandon(t.Context(), dead, true); err != nil {
			t.Fatal(err)
		}
		dead = take(t, b, "q"+deadLetterSuffix, 10)
	}
	if err := b.complete(t.Context(), dead); err != nil {
		t.Fatal(err)
	}
	wantCounts(t, b, "q", queueCounts{Active: 1})
}

func TestDuplicatesAreDropped(t *testing.T) {
	t.Parallel()
	b := newBroker(t, filepath.Join(t.TempDir(), "q.db"), time.Minute, 10)
	now := testTime
	b.now = func() time.Time { return now }
	put(t, b, "q", "a", "b", "a")
	put(t, b, "other", "a")
	if err := b.complete(t.Context(), take(t, b, "q", 1)); err != nil {
		t.Fatal(err)
	}
	now = now.Add(duplicateWindow - time.Millisecond)
	put(t, b, "q", "a", "c") // a was consumed, and is remembered all the same
	wantCounts(t, b, "q", queueCounts{Active: 2})
	now = now.Add(time.Millisecond)
	put(t, b, "q", "a", "c")
	wantCounts(t, b, "q", queueCounts{Active: 3})
	wantCounts(t, b, "other", queueCounts{Active: 1})
}

func TestBrokerSurvivesItsProcess(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "q.db")
	b := newBroker(t, path, time.Hour, 10)
	if err := b.enqueue(t.Context(), "q", []message{{ID: "a", Subject: "s", SessionID: "x", ContentType: "c", Properties: []byte(`{"n":1}`), Body: []byte{0, 1}}}); err != nil {
		t.Fatal(err)
	}
	put(t, b, "q", "b")
	locked := take(t, b, "q", 1)
	if _, err := openBroker(t.Context(), path, time.Hour, 10); !errors.Is(err, errDataInUse) {
		t.Errorf("second open: %v", err)
	}
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	b = newBroker(t, path, time.Hour, 10)
	d := take(t, b, "q", 10)
	if got := ids(d.messages); got != "a/2 b/1" { // the lock is released, its delivery counted
		t.Errorf("received %s", got)
	}
	locked.messages[0].DeliveryCount = 2
	if diff := cmp.Diff(locked.messages[0], d.messages[0]); diff != "" {
		t.Errorf("message differs:\n%s", diff)
	}
	put(t, b, "q", "a") // is still known
	wantCounts(t, b, "q", queueCounts{Locked: 2})
}

func TestConcurrentReceiversShareTheMessages(t *testing.T) {
	t.Parallel()
	b := newBroker(t, filepath.Join(t.TempDir(), "q.db"), time.Minute, 10)
	const n = 200
	got := make(chan string, n)
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range 4 {
		all.Go(func() {
			for {
				d, err := b.receive(ctx, "q", 3)
				if err != nil {
					return
				}
				for _, m := range d.messages {
					got <- m.ID
				}
				if err := b.complete(t.Context(), d); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		put(t, b, "q", fmt.Sprint(i))
	}
	seen := map[string]bool{}
	for range n {
		id := next(t, got)
		if seen[id] {
			t.Errorf("%s was received twice", id)
		}
		seen[id] = true
	}
	cancel()
	all.Wait()
	wantCounts(t, b, "q", queueCounts{})
}

func TestBrokerAPI(t *testing.T) {
	t.Parallel()
	b := newBroker(t, filepath.Join(t.TempDir(), "q.db"), time.Minute, 1)
	b.now = func() time.Time { return testTime }
	server := httptest.NewServer(b.handler([]string{"declared", "events"}))
	t.Cleanup(server.Close)
	const jsonBody = "application/json"
	many := `{"messages":[` + strings.TrimSuffix(strings.Repeat(`{"id":"x"},`, 1001), ",") + `]}`
	steps := []struct {
		method, target, contentType, body string
		status                            int
		want                              string
	}{
		{"POST", "/events/messages", jsonBody, `{"messages":[{"id":"1","subject":"s","sessionId":"u","contentType":"t","properties":{"n":9007199254740993,"b":true,"s":"x"},"body":"AAE="},{"id":"2"},{"id":"1"}]}`, 201, `{"accepted":3}`},
		{"GET", "/events", "", "", 200, `{"active":2,"deadLetter":0,"locked":0,"queue":"events"}`},
		{"GET", "/events/messages?limit=1", "", "", 200, `{"messages":[{"id":"1","subject":"s","sessionId":"u","contentType":"t","properties":{"b":true,"n":9007199254740993,"s":"x"},"body":"AAE=","deliveryCount":0,"enqueuedAt":"2026-01-15T10:00:00.000Z"}]}`},
		{"GET", "/declared", "", "", 200, `{"active":0,"deadLetter":0,"locked":0,"queue":"declared"}`},
		{"GET", "/declared/messages", "", "", 200, `{"messages":[]}`},
		{"GET", "/declared%2F$deadletterqueue/messages", "", "", 200, `{"messages":[]}`},
		{"GET", "/misspelt", "", "", 404, "there is no queue misspelt; there are declared, events"},
		{"GET", "/misspelt/messages", "", "", 404, "there are declared, events"},
		{"GET", "/misspelt%2F$deadletterqueue", "", "", 404, "there are declared, events"},
		{"GET", "", "", "", 200, `{"queues":[{"active":0,"deadLetter":0,"locked":0,"queue":"declared"},{"active":2,"deadLetter":0,"locked":0,"queue":"events"}]}`},
		{"POST", "/events-rejected/messages", jsonBody, `{"messages":[{"id":"1","body":""}]}`, 201, `{"accepted":1}`},
		{"GET", "/events-rejected", "", "", 200, `{"active":1,"deadLetter":0,"locked":0,"queue":"events-rejected"}`},
		{"GET", "/", "", "", 200, `{"queues":[{"active":0,"deadLetter":0,"locked":0,"queue":"declared"},{"active":2,"deadLetter":0,"locked":0,"queue":"events"},{"active":1,"deadLetter":0,"locked":0,"queue":"events-rejected"}]}`},
		{"GET", "/events/nothing", "", "", 404, "POST /local/queues/{queue}/messages"},
		{"POST", "", jsonBody, `{}`, 405, "GET /local/queues"},
		{"POST", "/events%2F$deadletterqueue/messages", jsonBody, `{"messages":[{"id":"1"}]}`, 400, "nobody can send"},
		{"POST", "/-bad/messages", jsonBody, `{"messages":[{"id":"1"}]}`, 400, "queue name"},
		{"POST", "/a%2Fb/messages", jsonBody, `{"messages":[{"id":"1"}]}`, 400, "queue name"},
		{"POST", "/" + strings.Repeat("a", 261) + "/messages", jsonBody, `{"messages":[{"id":"1"}]}`, 400, "queue name"},
		{"GET", "/caf%C3%A9", "", "", 400, "queue name"},
		{"GET", "/caf%C3%A9/messages", "", "", 400, "queue name"},
		{"POST", "/events/messages", "text/plain", `{"messages":[{"id":"1"}]}`, 415, "application/json"},
		{"POST", "/events/messages", jsonBody, `{`, 400, "cannot be read"},
		{"POST", "/events/messages", jsonBody, `{"messages":[{"id":"3","body":"not base64"}]}`, 400, "cannot be read"},
		{"POST", "/events/messages", jsonBody, `{}`, 400, "0 messages"},
		{"POST", "/events/messages", jsonBody, many, 400, "1001 messages"},
		{"POST", "/events/messages", jsonBody, `{"messages":[{"id":"3"},{"id":""}]}`, 400, "message 1"},
		{"POST", "/events/messages", jsonBody, `{"messages":[{"id":"3","properties":{"o":{}}}]}`, 400, "message 0"},
		{"POST", "/events/messages", jsonBody, `{"messages":[{"id":"` + strings.Repeat("x", 129) + `"}]}`, 400, "message 0"},
		{"POST", "/events/messages", jsonBody, `{"messages":[{"id":"3","body":"` + strings.Repeat("A", 8<<20) + `"}]}`, 413, "cannot be read"},
		{"GET", "/events/messages?limit=0", "", "", 400, "limit"},
		{"DELETE", "/events", "", "", 405, "does not take DELETE"},
		{"GET", "/events", "", "", 200, `{"active":2,"deadLetter":0,"locked":0,"queue":"events"}`}, // nothing of the bad ones is there
	}
	for _, s := range steps {
		resp, body := request(t, s.method, server.URL, queuesPath+s.target, http.Header{"Content-Type": {s.contentType}}, strings.NewReader(s.body))
		if resp.StatusCode != s.status || !strings.Contains(body, s.want) || s.status < 300 && body != s.want {
			t.Errorf("%s %.60s: %d %.300s, want %d %s", s.method, s.target, resp.StatusCode, body, s.status, s.want)
		}
		if kind := resp.Header.Get("Content-Type"); s.status >= 400 && kind != "application/problem+json" {
			t.Errorf("%s %.60s: content type %s", s.method, s.target, kind)
		}
	}
	if err := b.abandon(t.Context(), take(t, b, "events", 1), true); err != nil {
		t.Fatal(err)
	}
	if _, body := request(t, "GET", server.URL, queuesPath+"/events", nil, nil); body != `{"active":1,"deadLetter":1,"locked":0,"queue":"events"}` {
		t.Errorf("counts %s", body)
	}
	_, body := request(t, "GET", server.URL, queuesPath+"/events%2F$deadletterqueue/messages", nil, nil)
	if !strings.Contains(body, `"deadLetterReason":"MaxDeliveryCountExceeded"`) || !strings.Contains(body, `"deliveryCount":1`) {
		t.Errorf("dead letters %s", body)
	}
}
