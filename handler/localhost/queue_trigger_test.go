package localhost

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// received returns the MessageIdArray and DeliveryCountArray of a batch call.
func received(t *testing.T, c call) (ids []string, deliveries []int) {
	t.Helper()
	var e struct{ Metadata map[string]json.RawMessage }
	if err := json.Unmarshal(c.Body, &e); err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]any{"MessageIdArray": &ids, "DeliveryCountArray": &deliveries} {
		var text string
		if err := json.Unmarshal(e.Metadata[name], &text); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(text), v); err != nil {
			t.Fatal(err)
		}
	}
	return ids, deliveries
}

// settled waits until the queue has counts.
func settled(t *testing.T, r *running, queue string, want queueCounts) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		got, err := r.broker.counts(t.Context(), queue)
		if err != nil {
			t.Fatal(err)
		}
		if got == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: counts %+v, want %+v", queue, got, want)
		}
		time.Sleep(5 * time.Millisecond) // the broker has no signal for "settled"
	}
}

func TestBatchTrigger(t *testing.T) {
	t.Parallel()
	calls, proceed := make(chan call), make(chan reply)
	r := start(t, testApp{
		functions: map[string]string{"Work": queueFunction("work", "many", "string")},
		host:      map[string]any{"extensions": map[string]any{"serviceBus": map[string]any{"maxMessageBatchSize": 3}}},
		script:    func(c call) reply { calls <- c; return <-proceed },
	})
	put(t, r.broker, "work", "1")
	c := next(t, calls)
	if got, _ := received(t, c); c.URI != "/Work" || c.Method != "POST" || fmt.Sprint(got) != "[1]" {
		t.Errorf("%s %s: %v", c.Method, c.URI, got)
	}
	put(t, r.broker, "work", "2", "3", "4", "5") // one batch at a time: these wait
	proceed <- ok
	if got, _ := received(t, next(t, calls)); fmt.Sprint(got) != "[2 3 4]" {
		t.Errorf("second batch %v", got)
	}
	proceed <- reply{Status: 500}
	if got, n := received(t, next(t, calls)); fmt.Sprint(got, n) != "[2 3 4] [2 2 2]" {
		t.Errorf("after a failure %v, deliveries %v", got, n)
	}
	proceed <- ok
	if got, _ := received(t, next(t, calls)); fmt.Sprint(got) != "[5]" {
		t.Errorf("last batch %v", got)
	}
	proceed <- ok
	settled(t, r, "work", queueCounts{})
}

func TestSingleTriggerRunsCallsAtATime(t *testing.T) {
	t.Parallel()
	calls, proceed := make(chan call), make(chan reply)
	r := start(t, testApp{
		functions: map[string]string{"One": queueFunction("work", "one", "binary")},
		host:      map[string]any{"extensions": map[string]any{"serviceBus": map[string]any{"maxConcurrentCalls": 3}}},
		script:    func(c call) reply { calls <- c; return <-proceed },
	})
	put(t, r.broker, "work", "1", "2", "3", "4")
	for range 3 {
		next(t, calls)
	}
	settled(t, r, "work", queueCounts{Active: 1, Locked: 3})
	proceed <- ok
	next(t, calls)
	for range 3 {
		proceed <- ok
	}
	settled(t, r, "work", queueCounts{})
}

func TestFailingMessagesBecomeDeadLetters(t *testing.T) {
	t.Parallel()
	dead := make(chan call, 1)
	var tries atomic.Int32
	r := start(t, testApp{
		functions: map[string]string{
			"Work": queueFunction("work", "many", "string"),
			"Dead": queueFunction("work/$deadletterqueue", "many", "string"),
		},
		environ: []string{"MAX_DELIVERY_COUNT=3"},
		script: func(c call) reply {
			if c.URI == "/Dead" {
				dead <- c
				return ok
			}
			tries.Add(1)
			return reply{Status: 503}
		},
	})
	resp, body := request(t, "POST", r.QueueURL, "/work/messages", http.Header{"Content-Type": {"application/json"}},
		strings.NewReader(`{"messages":[{"id":"m","properties":{"type":"x"},"body":"e30="}]}`))
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("enqueue: %d %s", resp.StatusCode, body)
	}
	c := next(t, dead)
	if tries.Load() != 3 {
		t.Errorf("%d deliveries, want 3", tries.Load())
	}
	if !strings.Contains(string(c.Body), `\"DeadLetterReason\":\"MaxDeliveryCountExceeded\"`) || !strings.Contains(string(c.Body), `\"type\":\"x\"`) {
		t.Errorf("envelope %s", c.Body)
	}
	settled(t, r, "work", queueCounts{})
}

func TestMessagesWaitForTheHandler(t *testing.T) {
	t.Parallel()
	calls := make(chan call, 10)
	var failures atomic.Int32
	r := start(t, testApp{
		functions: map[string]string{"Work": queueFunction("work", "many", "string")},
		script: func(c call) reply {
			calls <- c
			if failures.Add(1) == 1 {
				return exit(200)
			}
			return ok
		},
	})
	put(t, r.broker, "work", "1")
	next(t, calls)
	if _, n := received(t, next(t, calls)); n[0] != 2 {
		t.Errorf("delivery %d, want the second: the time without a handler does not count", n[0])
	}
	settled(t, r, "work", queueCounts{})
}

func TestQueuesSurviveTheHost(t *testing.T) {
	t.Parallel()
	calls := make(chan call, 10)
	app := testApp{
		functions: map[string]string{"Work": queueFunction("work", "many", "string")},
		options:   Options{DataDir: t.TempDir()},
		environ:   []string{"AzureWebJobs_Work_Disabled=1"},
		script:    func(c call) reply { calls <- c; return ok },
	}
	first := start(t, app)
	put(t, first.broker, "work", "1", "2")
	if err := first.end(t); err != nil {
		t.Fatal(err)
	}
	app.environ = nil
	second := start(t, app)
	if got, _ := received(t, next(t, calls)); fmt.Sprint(got) != "[1 2]" {
		t.Errorf("received %v", got)
	}
	settled(t, second, "work", queueCounts{})
}
