package localqueue

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/queue"
)

// sent is a request that the sender made.
type sent struct {
	Method, Path, ContentType string
	Size                      int
	Messages                  []message
}

// serve answers like the broker, with status for every request, and records requests.
func serve(t *testing.T, status func(n int) int) (*Sender, *[]sent) {
	t.Helper()
	var all []sent
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		s := sent{Method: r.Method, Path: r.URL.EscapedPath(), ContentType: r.Header.Get("Content-Type"), Size: len(data)}
		if r.Method == http.MethodPost {
			var body struct{ Messages []message }
			if err := json.Unmarshal(data, &body); err != nil {
				t.Error(err)
			}
			s.Messages = body.Messages
		}
		all = append(all, s)
		w.WriteHeader(status(len(all)))
		fmt.Fprint(w, `{"detail":"what is wrong"}`)
	}))
	t.Cleanup(server.Close)
	return New(server.URL+"/local/queues/", nil), &all
}

func created(int) int { return http.StatusCreated }

func TestSendKeepsEverything(t *testing.T) {
	t.Parallel()
	s, all := serve(t, created)
	m := queue.Message{
		ID: "1", Subject: "user.online", SessionID: "alice", ContentType: "application/json",
		Properties: map[string]any{"user": "alice", "epoch": int64(1)<<53 + 1, "live": true}, Body: []byte{0, 255}, NotBefore: time.UnixMilli(1_700_000_000_123).UTC(),
	}
	if err := s.Send(t.Context(), "connectivity-events", []queue.Message{m, {ID: "2"}}); err != nil {
		t.Fatal(err)
	}
	want := []sent{{
		Method: "POST", Path: "/local/queues/connectivity-events/messages", ContentType: "application/json", Size: (*all)[0].Size,
		Messages: []message{{
			ID: "1", Subject: "user.online", SessionID: "alice", ContentType: "application/json",
			Properties: map[string]any{"user": "alice", "epoch": float64(1<<53 + 1), "live": true}, Body: []byte{0, 255}, NotBefore: m.NotBefore,
		}, {ID: "2"}},
	}}
	if diff := cmp.Diff(want, *all); diff != "" {
		t.Errorf("requests differ:\n%s", diff)
	}
}

func TestSendSplits(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ messages, bytes, requests int }{
		"none":           {0, 0, 0},
		"a full request": {1000, 10, 1},
		"one more":       {1001, 10, 2},
		"many bytes":     {5, 1 << 20, 3}, // 1.3 MiB each in base64
		"one is large":   {2, 4 << 20, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, all := serve(t, created)
			var messages []queue.Message
			for i := range test.messages {
				messages = append(messages, queue.Message{ID: fmt.Sprint(i), Body: make([]byte, test.bytes)})
			}
			if err := s.Send(t.Context(), "q", messages); err != nil {
				t.Fatal(err)
			}
			i := 0
			for _, r := range *all {
				if len(r.Messages) > maxMessages || len(r.Messages) > 1 && r.Size > maxBytes+100 {
					t.Errorf("a request has %d messages in %d bytes", len(r.Messages), r.Size)
				}
				for _, m := range r.Messages {
					if m.ID != fmt.Sprint(i) {
						t.Errorf("message %s at %d", m.ID, i)
					}
					i++
				}
			}
			if i != test.messages || len(*all) != test.requests {
				t.Errorf("%d messages in %d requests, want %d in %d", i, len(*all), test.messages, test.requests)
			}
		})
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	s, all := serve(t, func(n int) int {
		if n == 2 {
			return http.StatusBadRequest
		}
		return http.StatusCreated
	})
	err := s.Send(t.Context(), "q", make([]queue.Message, 2500))
	if err == nil || !strings.Contains(err.Error(), "queue q") || !strings.Contains(err.Error(), "what is wrong") || len(*all) != 2 {
		t.Errorf("error %v after %d requests", err, len(*all))
	}
	if err := s.Send(t.Context(), "q", []queue.Message{{ID: "1", Properties: map[string]any{"f": func() {}}}}); err == nil {
		t.Error("a property that JSON cannot hold is accepted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Send(ctx, "q", make([]queue.Message, 1)); err == nil {
		t.Error("sent although the context is done")
	}
}

func TestPing(t *testing.T) {
	t.Parallel()
	s, all := serve(t, func(n int) int { return []int{200, 500}[n-1] })
	if err := s.Ping(t.Context(), "q/$deadletterqueue"); err != nil {
		t.Error(err)
	}
	if want := (sent{Method: "GET", Path: "/local/queues/q%2F$deadletterqueue"}); !cmp.Equal((*all)[0], want) {
		t.Errorf("request %+v, want %+v", (*all)[0], want)
	}
	if err := s.Ping(t.Context(), "q"); err == nil {
		t.Error("no error for a 500")
	}
	if err := New("http://127.0.0.1:1", nil).Ping(t.Context(), "q"); err == nil {
		t.Error("no error without a broker")
	}
}
