package triggers_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-chi/chi/v5"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/triggers"
	"userconnectivity/handler/worker"
)

// pipes is a listener without a network, so that its deadlines follow the clock of a synctest bubble.
type pipes struct {
	accepted chan net.Conn
	closed   chan struct{}
	once     sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.accepted:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "pipe"} }

// dial opens a connection and sends what a request begins with.
func (p *pipes) dial(t *testing.T, text string) net.Conn {
	t.Helper()
	client, server := net.Pipe()
	p.accepted <- server
	if _, err := io.WriteString(client, text); err != nil {
		t.Fatal(err)
	}
	return client
}

// call makes a whole request and returns the status of its answer.
func (p *pipes) call(t *testing.T, path, body string) int {
	t.Helper()
	conn := p.dial(t, "")
	defer conn.Close()
	go func() { _, _ = io.WriteString(conn, head(path, len(body))+body) }() // the answer may come before all of it is read
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return response.StatusCode
}

func head(path string, length int) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", path, length)
}

// served runs the routes on pipes in a bubble, until the test in it ends.
func served(t *testing.T, routes http.Handler) *pipes {
	t.Helper()
	p := &pipes{accepted: make(chan net.Conn), closed: make(chan struct{})}
	server := &http.Server{Handler: routes, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Minute}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(p) }()
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
		time.Sleep(time.Second) // connections that were closed early linger for half of that
	})
	return p
}

// quick are the routes over a live state that answers at once.
func quick() *chi.Mux {
	return triggers.Routes(triggers.Handlers{
		Tracker: presence.NewTracker(applied{time.Now().Add(time.Minute)}, nil, presence.DefaultTTL), Worker: (*worker.Worker)(nil), Log: discard,
	})
}

// TestStalledUploads: bodies that do not come hold up nobody, however many they are, and end with 408.
func TestStalledUploads(t *testing.T) {
	t.Parallel()
	c := contractOf(t)
	for _, tt := range []struct {
		path, body string
		uploads    int
	}{
		{"/api/heartbeats", `{"heartbeats":[{"user":"ann"}]}`, 100},
		{"/api/leaves", `{"leaves":[{"user":"ann"}]}`, 100},
		{"/api/heartbeat", `{"user":"ann"}`, 5000},
		{"/api/leave", `{"user":"ann"}`, 5000},
	} {
		t.Run(strings.TrimPrefix(tt.path, "/api/"), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := served(t, quick())
				began := time.Now()
				stalled := make([]net.Conn, tt.uploads)
				for i := range stalled {
					stalled[i] = p.dial(t, head(tt.path, 16<<10)+tt.body[:i%len(tt.body)])
				}
				synctest.Wait()
				if status := p.call(t, tt.path, tt.body); status >= 300 {
					t.Errorf("beside %d stalled uploads: %d", tt.uploads, status)
				}
				if took := time.Since(began); took > 0 {
					t.Errorf("it waited %v for them", took)
				}
				for i, conn := range stalled {
					response, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err != nil {
						t.Fatal(err)
					}
					a := &answer{t: t, call: "POST " + tt.path, Status: response.StatusCode, Header: response.Header}
					if a.Body, err = io.ReadAll(response.Body); err != nil {
						t.Fatal(err)
					}
					a.is(408)
					if i == 0 {
						c.checkProblem(t, a)
					}
					if !response.Close || !strings.Contains(string(a.Body), "10s") {
						t.Errorf("%v %s", response.Header, a.Body)
					}
					_ = conn.Close()
				}
				if took := time.Since(began); took != 10*time.Second {
					t.Errorf("they were given up after %v", took)
				}
			})
		})
	}
}

// TestStalledUploadsThatNobodyReads: bodies of calls that take none, or that are refused, end their connection as well,
// and the answer to one that is refused for its length does not wait for the rest.
func TestStalledUploadsThatNobodyReads(t *testing.T) {
	t.Parallel()
	const chunked = " HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
	long := fmt.Sprintf("%x\r\n%s", 20000, strings.Repeat(" ", 20000))
	for _, tt := range []struct {
		name, text string
		status     int
		answered   time.Duration
	}{
		{"GET", "GET /api/openapi.json" + chunked, 408, 10 * time.Second},
		{"no route", "GET /api/nothing" + chunked, 404, 10 * time.Second},
		{"no method", "PUT /api/users/ann" + chunked, 405, 10 * time.Second},
		{"DELETE", "DELETE /api/users/ann/sessions/a" + chunked, 408, 10 * time.Second},
		{"replay", "POST /api/events/a/replay" + chunked, 408, 10 * time.Second},
		{"too long", "POST /api/heartbeat" + chunked + long, 413, 0},
		{"too long by its length", head("/api/heartbeat", 20000), 413, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := served(t, quick())
				began := time.Now()
				conn := p.dial(t, tt.text)
				defer conn.Close()
				in := bufio.NewReader(conn)
				response, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, response.Body); err != nil {
					t.Fatal(err)
				}
				if took := time.Since(began); response.StatusCode != tt.status || took != tt.answered {
					t.Errorf("%d after %v, want %d after %v", response.StatusCode, took, tt.status, tt.answered)
				}
				if _, err := in.ReadByte(); !errors.Is(err, io.EOF) || time.Since(began) > 11*time.Second {
					t.Errorf("the connection: %v after %v, want its end", err, time.Since(began))
				}
			})
		})
	}
}

// TestSlowUploads: a body that comes in time is taken, in how many pieces whatsoever, and the connection goes on.
func TestSlowUploads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := served(t, quick())
		body := `{"heartbeats":[` + strings.Repeat(`{"user":"ann"},`, 999) + `{"user":"ann"}]}`
		conn := p.dial(t, "")
		defer conn.Close()
		reader := bufio.NewReader(conn)
		for range 3 {
			if _, err := io.WriteString(conn, head("/api/heartbeats", len(body))); err != nil {
				t.Fatal(err)
			}
			for i := range 9 {
				time.Sleep(time.Second)
				if _, err := io.WriteString(conn, body[i*len(body)/9:(i+1)*len(body)/9]); err != nil {
					t.Fatal(err)
				}
			}
			response, err := http.ReadResponse(reader, nil)
			if err != nil {
				t.Fatal(err)
			}
			if text, err := io.ReadAll(response.Body); err != nil || response.StatusCode != 200 {
				t.Fatalf("%s %s, %v", response.Status, text, err)
			}
			time.Sleep(5 * time.Minute) // the deadlines of one request are not those of the next
		}
	})
}

// TestUploadsShareTheirMemory: what has arrived is bounded, whatever stalls then; it is given back at the end.
func TestUploadsShareTheirMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := served(t, quick())
		part := strings.Repeat(" ", 3<<20) // of 4 MiB, for which there is room by then
		var stalled []net.Conn
		for range 192 / 4 {
			stalled = append(stalled, p.dial(t, head("/api/heartbeats", 4<<20)+part))
		}
		synctest.Wait()
		if status := p.call(t, "/api/heartbeats", part); status != 503 {
			t.Errorf("without memory: %d, want 503", status)
		}
		if status := p.call(t, "/api/heartbeats", `{"heartbeats":[]}`); status != 200 {
			t.Errorf("a small one needs none of it: %d", status)
		}
		if status := p.call(t, "/api/heartbeat", `{"user":"ann"}`); status != 200 {
			t.Errorf("a single one has its own: %d", status)
		}
		for _, conn := range stalled {
			_ = conn.Close()
		}
		synctest.Wait()
		if status := p.call(t, "/api/heartbeats", `{"heartbeats":[]}`+part); status != 200 {
			t.Errorf("after they ended: %d", status)
		}
	})
}

// TestStalledReaders: a caller who does not read the answer holds a place for a bounded time.
func TestStalledReaders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const places = 32
		p := served(t, quick())
		items := `{"heartbeats":[` + strings.Repeat(`7,`, 999) + `7]}` // each of which is named in the answer
		var stalled []net.Conn
		for range places {
			stalled = append(stalled, p.dial(t, head("/api/heartbeats", len(items))+items))
		}
		synctest.Wait()
		if status := p.call(t, "/api/leaves", `{"leaves":[]}`); status != 503 {
			t.Fatalf("all places are taken: %d, want 503", status)
		}
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if status := p.call(t, "/api/leaves", `{"leaves":[]}`); status != 204 {
			t.Errorf("after the time for answers: %d, want 204", status)
		}
		for _, conn := range stalled {
			_ = conn.Close()
		}
	})
}

// TestPlacesAreGivenBack: neither a refused body nor a fault of the work costs a place.
func TestPlacesAreGivenBack(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func(context.Context) error{
		"fault": func(context.Context) error { return errors.New("broken") },
		"panic": func(context.Context) error { panic("broken") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, withFailing(fail))
			for i := range 40 {
				b.do(calls()["Heartbeats"]).is(500)
				b.do(call{method: "POST", path: "/api/leaves", body: strings.Repeat("{", i*1000), loose: true}).is(400)
				b.do(call{method: "POST", path: "/api/leaves", body: strings.Repeat(" ", 4<<20+1), loose: true}).is(413)
			}
		})
	}
}
