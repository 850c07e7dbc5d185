package localhost

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// BenchmarkQueue enqueues, receives and completes one message.
func BenchmarkQueue(b *testing.B) {
	q, err := openBroker(b.Context(), filepath.Join(b.TempDir(), "q.db"), time.Minute, 10)
	if err != nil {
		b.Fatal(err)
	}
	defer q.close()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if err := q.enqueue(b.Context(), "q", []message{{ID: fmt.Sprint(i), Body: make([]byte, 500)}}); err != nil {
			b.Fatal(err)
		}
		d, err := q.receive(b.Context(), "q", 200)
		if err == nil {
			err = q.complete(b.Context(), d)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkProxy passes a request on to a handler that does nothing.
func BenchmarkProxy(b *testing.B) {
	handler := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer handler.Close()
	u, err := url.Parse(handler.URL)
	if err != nil {
		b.Fatal(err)
	}
	p := newProcess()
	p.port, _ = strconv.Atoi(u.Port())
	p.ready = true
	r, err := parseRoute("api", "f")
	if err != nil {
		b.Fatal(err)
	}
	h := &Host{router: newRouter([]*function{{name: "F", route: r, trigger: binding{Type: "httpTrigger"}}})}
	h.proxy = newProxy(p, newHandlerTransport(), b.Context(), slog.New(slog.DiscardHandler))
	front := httptest.NewServer(http.HandlerFunc(h.serveFunction))
	defer front.Close()
	client := &http.Client{Transport: newHandlerTransport()}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			resp, err := client.Get(front.URL + "/api/f")
			if err != nil {
				b.Error(err)
				return
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	})
}
