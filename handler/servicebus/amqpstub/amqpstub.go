// Package amqpstub starts a stand-in for a Service Bus namespace for tests: a broker that speaks AMQP 1.0 as far
// as the clients of Service Bus use it (broker.js, on the npm package rhea), with faults that a test plans.
//
// It needs node and npm on the PATH; without them a test fails. Nothing leaves the machine except for npm ci, once.
package amqpstub

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"userconnectivity/handler/internal/npm"
)

// KeyName and Key are in the connection string of the broker. It accepts any token until RequireKey was called.
const (
	KeyName = "RootManageSharedAccessKey"
	Key     = "c3R1Yi1rZXktb2YtdGhlLWFtcXAtc3R1YiE="
)

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 5 * time.Second
	callTimeout  = 10 * time.Second
)

// Broker is one running broker, a process of its own.
type Broker struct {
	tb      testing.TB
	process *os.Process
	amqp    int
	control string
}

// QueueOptions are the properties of a queue. The zero value is a queue of Service Bus with its defaults.
type QueueOptions struct {
	DuplicateDetection bool
	RequiresSession    bool
	MaxDeliveryCount   int           // 0: 10
	Lock               time.Duration // 0: a minute
	MaxMessageBytes    int           // 0: 256 KiB
	MaxBatchBytes      int           // 0: as MaxMessageBytes
}

// Events that a Fault may answer.
const (
	OnToken  = "token"
	OnAttach = "attach"
	OnSend   = "send"
)

// Kinds of Fault.
const (
	None       = "none"       // lets one event pass
	Slow       = "slow"       // accepts after Delay
	Silent     = "silent"     // never answers
	Reject     = "reject"     // answers with Condition and Description
	Detach     = "detach"     // detaches the link with Condition and Description
	Disconnect = "disconnect" // drops the connection before anything is stored
	LoseAck    = "lose-ack"   // stores, then drops the connection without an answer
)

// Fault is what the broker does instead of its work, for one event. Faults are used in the order in which they
// were planned.
type Fault struct {
	On    string // OnToken, OnAttach or OnSend
	Queue string // "" for any
	Kind  string
	Times int // 0: once; Forever: until ClearFaults

	Condition, Description string // of Reject and Detach, on OnAttach and OnSend
	Status                 int    // of Reject on OnToken; 0: 401
	Delay                  time.Duration
}

// Forever keeps a fault until ClearFaults.
const Forever = -1

// ServerBusy is how Service Bus answers a send when the namespace is throttled.
func ServerBusy(queue string) Fault {
	return Fault{
		On: OnSend, Queue: queue, Kind: Reject, Condition: "com.microsoft:server-busy",
		Description: "The request was terminated because the namespace stub is being throttled. Error code : 50009. Please wait 2 seconds and try again.",
	}
}

// Message is one message as the broker holds it.
type Message struct {
	Sequence      int64
	State         string // active, locked or scheduled
	DeliveryCount int
	EnqueuedAt    time.Time
	ID            string
	Subject       string
	SessionID     string
	ContentType   string
	Properties    map[string]any // numbers are float64
	Body          []byte
}

// Queue is the content of a queue, oldest message first.
type Queue struct {
	Name                                  string
	Active, Locked, Scheduled, DeadLetter int
	Duplicates                            int // dropped by duplicate detection
	Messages                              []Message
}

// Stats are counts since the start of the broker.
type Stats struct {
	Connections  int // ever opened
	Open         int // open now
	Attached     int // links of senders to queues
	Transfers    int // messages and batches sent, faults included
	Received     int // messages stored or dropped as duplicates
	Accepted     int // transfers accepted
	IdleDetached int
	Planned      int // faults not used yet
	Waiting      int // transfers held back by Pause
}

// Token is one token that a client has put.
type Token struct{ Audience, Type, Token string }

// Start runs a broker on free ports of 127.0.0.1 until the test ends.
func Start(tb testing.TB) *Broker {
	tb.Helper()
	_, file, _, _ := runtime.Caller(0)
	dir := filepath.Dir(file)
	if err := install(dir); err != nil {
		tb.Fatalf("install the AMQP stub: %v", err)
	}
	cmd := exec.Command("node", "broker.js")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("start the AMQP stub: %v", err)
	}
	exited := make(chan error, 1)
	ready := make(chan []byte, 1)
	go func() {
		line, _ := bufio.NewReader(stdout).ReadBytes('\n')
		ready <- line
		_, _ = io.Copy(io.Discard, stdout)
		exited <- cmd.Wait()
	}()
	tb.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGCONT) // it may be frozen
		_ = stdin.Close()
		select {
		case <-exited:
		case <-time.After(stopTimeout):
			_ = cmd.Process.Kill()
			<-exited
			tb.Errorf("the AMQP stub did not stop by itself")
		}
		if stderr.Len() > 0 {
			tb.Errorf("the AMQP stub wrote to stderr:\n%s", stderr.String())
		}
	})
	select {
	case line := <-ready:
		var ports struct{ AMQP, Control int }
		if err := json.Unmarshal(line, &ports); err != nil {
			tb.Fatalf("ready line %q of the AMQP stub: %v", line, err)
		}
		return &Broker{tb: tb, process: cmd.Process, amqp: ports.AMQP, control: fmt.Sprintf("http://127.0.0.1:%d", ports.Control)}
	case <-time.After(startTimeout):
		tb.Fatalf("the AMQP stub was not ready after %v", startTimeout)
	}
	return nil
}

// install makes the packages of the broker available.
func install(dir string) error { return npm.Install(dir) }

// Addr is the AMQP address, host:port.
func (b *Broker) Addr() string { return fmt.Sprintf("127.0.0.1:%d", b.amqp) }

// ConnectionString is that of an emulator: plain AMQP. Clients of Service Bus and the handler take it.
func (b *Broker) ConnectionString() string {
	return fmt.Sprintf("Endpoint=sb://%s;SharedAccessKeyName=%s;SharedAccessKey=%s;UseDevelopmentEmulator=true;", b.Addr(), KeyName, Key)
}

// CreateQueue makes a queue, or changes the options of one.
func (b *Broker) CreateQueue(name string, o QueueOptions) {
	b.tb.Helper()
	options := map[string]any{"duplicateDetection": o.DuplicateDetection, "requiresSession": o.RequiresSession}
	for key, n := range map[string]int{
		"maxDeliveryCount": o.MaxDeliveryCount, "lockMs": int(o.Lock.Milliseconds()),
		"maxMessageBytes": o.MaxMessageBytes, "maxBatchBytes": o.MaxBatchBytes,
	} {
		if n > 0 {
			options[key] = n
		}
	}
	b.call(http.MethodPut, queuePath(name), options, nil)
}

// DeleteQueue removes a queue.
func (b *Broker) DeleteQueue(name string) {
	b.tb.Helper()
	b.call(http.MethodDelete, queuePath(name), nil, nil)
}

// Queue returns the content of a queue; name + "/$deadletterqueue" is its dead letter queue.
func (b *Broker) Queue(name string) Queue {
	b.tb.Helper()
	var q Queue
	b.call(http.MethodGet, queuePath(name), nil, &q)
	return q
}

// Plan adds faults to those not used yet.
func (b *Broker) Plan(faults ...Fault) {
	b.tb.Helper()
	body := make([]map[string]any, len(faults))
	for i, f := range faults {
		times := f.Times
		switch times {
		case 0:
			times = 1
		case Forever:
			times = 0
		}
		body[i] = map[string]any{
			"on": f.On, "queue": f.Queue, "kind": f.Kind, "times": times, "condition": f.Condition,
			"description": f.Description, "status": f.Status, "ms": f.Delay.Milliseconds(),
		}
	}
	b.call(http.MethodPost, "/faults", body, nil)
}

// ClearFaults forgets the faults not used yet.
func (b *Broker) ClearFaults() {
	b.tb.Helper()
	b.call(http.MethodDelete, "/faults", nil, nil)
}

// IdleDetach makes the broker detach the link of a sender after this time without a send; 0 turns it off.
func (b *Broker) IdleDetach(after time.Duration) {
	b.tb.Helper()
	b.call(http.MethodPut, "/settings", map[string]any{"idleDetachMs": after.Milliseconds()}, nil)
}

// RequireKey makes the broker refuse tokens that are not signed with the key.
func (b *Broker) RequireKey(keyName, key string) {
	b.tb.Helper()
	b.call(http.MethodPut, "/settings", map[string]any{"keyName": keyName, "key": key}, nil)
}

// Pause holds back all sends, Resume answers them.
func (b *Broker) Pause() {
	b.tb.Helper()
	b.call(http.MethodPut, "/settings", map[string]any{"paused": true}, nil)
}

// Resume answers the sends held back by Pause.
func (b *Broker) Resume() {
	b.tb.Helper()
	b.call(http.MethodPut, "/settings", map[string]any{"paused": false}, nil)
}

// DisconnectAll drops every connection.
func (b *Broker) DisconnectAll() {
	b.tb.Helper()
	b.call(http.MethodPost, "/disconnect", nil, nil)
}

// Freeze stops the process of the broker without closing anything, as a host that hangs does; its control channel
// is frozen too. Thaw lets it go on.
func (b *Broker) Freeze() {
	b.tb.Helper()
	if err := b.process.Signal(syscall.SIGSTOP); err != nil {
		b.tb.Fatal(err)
	}
}

// Thaw ends Freeze.
func (b *Broker) Thaw() {
	b.tb.Helper()
	if err := b.process.Signal(syscall.SIGCONT); err != nil {
		b.tb.Fatal(err)
	}
}

// Stats returns the counts.
func (b *Broker) Stats() Stats {
	b.tb.Helper()
	var s Stats
	b.call(http.MethodGet, "/stats", nil, &s)
	return s
}

// Tokens returns every token put, in order.
func (b *Broker) Tokens() []Token {
	b.tb.Helper()
	var t []Token
	b.call(http.MethodGet, "/tokens", nil, &t)
	return t
}

// Wait polls the counts until ok, and fails the test after ten seconds.
func (b *Broker) Wait(what string, ok func(Stats) bool) {
	b.tb.Helper()
	deadline := time.Now().Add(callTimeout)
	for !ok(b.Stats()) {
		if time.Now().After(deadline) {
			b.tb.Fatalf("%s: not after %v, %+v", what, callTimeout, b.Stats())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func queuePath(name string) string {
	return "/queues/" + strings.ReplaceAll(url.PathEscape(name), "%2F", "/")
}

// call asks the control channel and fails the test when it refuses.
func (b *Broker) call(method, path string, body, into any) {
	b.tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	payload, err := json.Marshal(body)
	if err != nil {
		b.tb.Fatal(err)
	}
	if body == nil {
		payload = nil
	}
	req, err := http.NewRequestWithContext(ctx, method, b.control+path, bytes.NewReader(payload))
	if err != nil {
		b.tb.Fatal(err)
	}
	req.Close = true // a kept connection would outlive the test
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.tb.Fatalf("control channel of the AMQP stub: %v", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.tb.Fatalf("control channel of the AMQP stub: %s %s: %d %s (%v)", method, path, resp.StatusCode, answer, err)
	}
	if into != nil {
		if err := json.Unmarshal(answer, into); err != nil {
			b.tb.Fatal(err)
		}
	}
}
