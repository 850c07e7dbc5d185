package localhost

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/localqueue"
	"userconnectivity/handler/queue"
)

func TestPortInUse(t *testing.T) {
	t.Parallel()
	app := handlerApp(RedisNone, nil)
	app.options.Port = busyPort(t)
	if err := launch(t, app).result(t); err == nil || !strings.Contains(err.Error(), "PORT=") {
		t.Errorf("the host ended with %v", err)
	}
}

func TestDataFolderInUse(t *testing.T) {
	t.Parallel()
	app := handlerApp(RedisNone, nil)
	app.options.DataDir = t.TempDir()
	first := start(t, app)
	if err := launch(t, app).result(t); !errors.Is(err, errDataInUse) || !strings.Contains(err.Error(), app.options.DataDir) {
		t.Errorf("the second host ended with %v", err)
	}
	if err := first.end(t); err != nil {
		t.Errorf("the first host ended with %v", err)
	}
	start(t, app)
}

func TestReadyFile(t *testing.T) {
	t.Parallel()
	app := exitApp(func(call) reply { return exit(200) })
	app.options.ReadyFile = filepath.Join(t.TempDir(), "ready.json")
	r := start(t, app)
	read := func() (s Status) {
		data, err := os.ReadFile(app.options.ReadyFile)
		if err == nil {
			err = json.Unmarshal(data, &s)
		}
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if got := read(); got != r.Status || got.URL == "" || got.QueueURL != got.URL+"/local/queues" {
		t.Errorf("ready file %+v, want %+v", got, r.Status)
	}
	request(t, "POST", r.URL, "/api/f", nil, strings.NewReader("x"))
	if again := r.waitReady(t); read() != again || again.HandlerPID == r.HandlerPID {
		t.Errorf("ready file %+v, want %+v", read(), again)
	}
	if err := r.end(t); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(app.options.ReadyFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the ready file stays: %v", err)
	}
}

// TestStopLetsCallsEnd stops the host while a request and a batch are under way, and lets their handler use the
// broker meanwhile.
func TestStopLetsCallsEnd(t *testing.T) {
	t.Parallel()
	calls, proceed := make(chan call, 2), make(chan struct{})
	app := testApp{
		functions: map[string]string{"F": fn(httpFunction, "f"), "Work": queueFunction("work", "many", "string")},
		options:   Options{DataDir: t.TempDir()},
	}
	var r *running
	app.script = func(c call) reply {
		calls <- c
		<-proceed
		if c.URI == "/Work" {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := localqueue.New(r.QueueURL, nil).Send(ctx, "next", []queue.Message{{ID: "n"}}); err != nil {
				t.Errorf("send while stopping: %v", err)
			}
		}
		return ok
	}
	r = start(t, app)
	put(t, r.broker, "work", "1")
	next(t, calls)
	status := make(chan int, 1)
	go func() {
		resp, err := http.Get(r.URL + "/api/f")
		if err != nil {
			t.Error(err)
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	next(t, calls)
	r.stop()
	// New requests are turned away from the moment on that the host waits.
	for {
		resp, _ := request(t, "GET", r.URL, "/api/unknown", nil, nil)
		if resp.StatusCode == http.StatusServiceUnavailable {
			break
		}
	}
	close(proceed)
	if got := next(t, status); got != http.StatusOK {
		t.Errorf("request under way: %d", got)
	}
	if err := r.result(t); err != nil {
		t.Errorf("the host ended with %v", err)
	}
	b := newBroker(t, filepath.Join(app.options.DataDir, "queues.db"), time.Minute, 10)
	wantCounts(t, b, "work", queueCounts{})
	wantCounts(t, b, "next", queueCounts{Active: 1})
}

func TestStopDoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	calls, release := make(chan call, 1), make(chan struct{})
	defer close(release)
	app := testApp{
		functions: map[string]string{"Work": queueFunction("work", "many", "string")},
		options:   Options{DataDir: t.TempDir()},
		script:    func(c call) reply { calls <- c; <-release; return ok },
	}
	r := start(t, app)
	put(t, r.broker, "work", "1")
	next(t, calls)
	if err := r.end(t); err != nil {
		t.Errorf("the host ended with %v", err)
	}
	b := newBroker(t, filepath.Join(app.options.DataDir, "queues.db"), time.Minute, 10)
	wantCounts(t, b, "work", queueCounts{Active: 1})
}

func TestStopWhileStarting(t *testing.T) {
	t.Parallel()
	for range 10 { // wherever it is by then
		if err := launch(t, handlerApp(RedisServer, nil)).end(t); err != nil {
			t.Errorf("the host ended with %v", err)
		}
	}
}

func TestExampleCommand(t *testing.T) {
	t.Parallel()
	r := start(t, testApp{functions: map[string]string{"Heartbeat": fn(httpFunction, "heartbeat")}, script: func(call) reply { return ok }})
	want := `curl -sS -H 'Content-Type: application/json' -d '{"user":"alice","ttlSeconds":5}' ` + r.URL + "/api/heartbeat\n"
	if !strings.Contains(r.stdout.String(), want) {
		t.Errorf("output:\n%s", r.stdout)
	}
}
