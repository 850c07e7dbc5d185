package triggers_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"userconnectivity/handler/triggers"
)

// TestExpirationListener: the figures of a listener that sweeps, and the reason of one that does not.
func TestExpirationListener(t *testing.T) {
	t.Parallel()
	var figures object
	b := setup(t)
	b.get("/api/listener").into(200, &figures)
	if figures["instance"] != "app/one" || figures["sweeps"] != 700.0 || figures["lastSweepAt"] != "2026-03-01T08:15:31.000Z" {
		t.Errorf("%v", figures)
	}
	if head := serve(b.routes, "HEAD", "/api/listener", ""); head.Code != 200 || head.Header().Get("Content-Type") != "application/json" {
		t.Errorf("HEAD: %d %v", head.Code, head.Header())
	}
	var logged bytes.Buffer
	silent := setup(t, func(h *triggers.Handlers) {
		h.Listener = listener{silent: errors.New("no sweep has succeeded for 12 s")}
		h.Log = slog.New(slog.NewTextHandler(&logged, nil))
	})
	a := silent.get("/api/listener")
	a.is(503)
	if !strings.Contains(string(a.Body), "no sweep has succeeded for 12 s") || a.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%v %s", a.Header, a.Body)
	}
	if said := strings.Count(logged.String(), "no sweep has succeeded"); said != 1 {
		t.Errorf("the log says %d times: %s", said, logged.String())
	}
	if head := serve(silent.routes, "HEAD", "/api/listener", ""); head.Code != 503 {
		t.Errorf("HEAD: %d", head.Code)
	}
	silent.get("/api/live").is(200) // a new process would find the same
}

// TestLiveWhileALoopHangs: the platform asks without a key, and replaces an instance that answers 503.
func TestLiveWhileALoopHangs(t *testing.T) {
	t.Parallel()
	b := setup(t, func(h *triggers.Handlers) { h.Listener = listener{hung: errors.New("the sweep hangs")} })
	a := b.get("/api/live")
	a.is(503)
	if !strings.Contains(string(a.Body), "the sweep hangs") || a.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%v %s", a.Header, a.Body)
	}
	for _, f := range readFunctions(t) {
		if f.name == "Live" && (f.trigger().AuthLevel != "anonymous" || !strings.EqualFold(f.trigger().Methods[0], http.MethodGet)) {
			t.Errorf("the platform's health check has no key: %+v", f.trigger())
		}
	}
}
