package triggers_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/triggers"
	"userconnectivity/handler/worker"
)

// applied is a live state that renews everything at once.
type applied struct{ due time.Time }

func (a applied) Heartbeats(_ context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error) {
	outcomes := make([]presence.BeatOutcome, len(beats))
	for i := range outcomes {
		outcomes[i] = presence.BeatOutcome{Change: presence.ChangeRenewed, Status: presence.Online, Epoch: 1, ExpiresAt: a.due}
	}
	return outcomes, nil
}

func (applied) Leaves(_ context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error) {
	return make([]presence.LeaveOutcome, len(leaves)), nil
}

func (applied) Users(_ context.Context, ids []string) ([]*presence.User, error) {
	return make([]*presence.User, len(ids)), nil
}

// nowhere is an answer that nobody reads.
type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n *nowhere) WriteHeader(int)             {}

func (n *nowhere) SetReadDeadline(time.Time) error  { return nil }
func (n *nowhere) SetWriteDeadline(time.Time) error { return nil }

// BenchmarkHeartbeat is what the handler adds to a single heartbeat: everything but the server and the store.
func BenchmarkHeartbeat(b *testing.B) {
	routes := triggers.Routes(triggers.Handlers{Tracker: presence.NewTracker(applied{time.Now().Add(time.Minute)}, nil, presence.DefaultTTL), Worker: (*worker.Worker)(nil), Log: discard})
	for _, bm := range []struct{ name, body string }{
		{"small", `{"user":"alice","session":"phone:7f3a","ttlSeconds":60}`},
		{"full", `{"user":"alice","session":"phone:7f3a","ttlSeconds":60,"graceSeconds":10,"groups":["facility:7"],"meta":{"app":"2.4.1","platform":"ios","n":17},"seq":1767225600000}`},
	} {
		b.Run(bm.name, func(b *testing.B) {
			body := strings.NewReader(bm.body)
			r := httptest.NewRequest(http.MethodPost, "/api/heartbeat", io.NopCloser(body))
			r.ContentLength = int64(len(bm.body))
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("X-Azure-Functions-InvocationId", "11111111-2222-4333-8444-555555555555")
			w := &nowhere{http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				body.Reset(bm.body)
				clear(w.header)
				routes.ServeHTTP(w, r)
			}
		})
	}
}

// BenchmarkHeartbeatServed is a whole request over the loopback interface.
func BenchmarkHeartbeatServed(b *testing.B) {
	server := httptest.NewServer(triggers.Routes(triggers.Handlers{Tracker: presence.NewTracker(applied{time.Now().Add(time.Minute)}, nil, presence.DefaultTTL), Worker: (*worker.Worker)(nil), Log: discard}))
	defer server.Close()
	b.ReportAllocs()
	for b.Loop() {
		response, err := server.Client().Post(server.URL+"/api/heartbeat", "application/json", strings.NewReader(`{"user":"alice","session":"phone:7f3a","ttlSeconds":60}`))
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		_ = response.Body.Close()
	}
}
