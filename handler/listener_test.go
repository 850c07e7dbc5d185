package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/expiry"
	"userconnectivity/handler/internal/testkit"
)

// TestListenerFigures: an instance tells of its own loop. One whose Redis is away says so, and stays live.
func TestListenerFigures(t *testing.T) {
	t.Parallel()
	server := testkit.Start(t)
	s := serveApp(t, server.URL(), map[string]string{"WEBSITE_SITE_NAME": "presence", "WEBSITE_INSTANCE_ID": "a"})
	s.must(200, "POST", "/api/heartbeat", map[string]any{"user": "ann"})
	answers := func(want int, holds func(text string) bool) func(context.Context, *redis.Client) (bool, error) {
		return func(context.Context, *redis.Client) (bool, error) {
			s.must(200, "GET", "/api/live", nil)
			status, _, text := s.call("GET", "/api/listener", nil)
			return status == want && holds(string(text)), fmt.Errorf("%d %s", status, text)
		}
	}
	testkit.Eventually(t, "it sweeps", answers(200, func(text string) bool { return strings.Contains(text, `"outboxDepth":1`) }), server)
	figures := openContract(t, s).hold("ListenerFigures", s.must(200, "GET", "/api/listener", nil))
	if figures["instance"] != "presence/a" || figures["sweeps"].(float64) < 1 {
		t.Errorf("%v", figures)
	}
	server.Kill()
	testkit.Eventually(t, "it says why not", answers(503, func(text string) bool {
		var problem struct{ Detail string }
		return json.Unmarshal([]byte(text), &problem) == nil && strings.HasPrefix(problem.Detail, "no sweep has succeeded for 1") && strings.Contains(problem.Detail, "Redis")
	}), server)
	if err := server.Run(); err != nil {
		t.Fatal(err)
	}
	testkit.Eventually(t, "it sweeps again", answers(200, func(string) bool { return true }), server)
}

// TestListenerOfAnotherApp: an app without the listener says so, and is live.
func TestListenerOfAnotherApp(t *testing.T) {
	t.Parallel()
	s := serveApp(t, testkit.Start(t).URL(), map[string]string{"AzureWebJobs_ExpirationListener_Disabled": "true"})
	if text := s.must(503, "GET", "/api/listener", nil); !strings.Contains(string(text), "AzureWebJobs_ExpirationListener_Disabled") {
		t.Errorf("%s", text)
	}
	s.must(200, "GET", "/api/live", nil)
}

// TestExitCode: the host never starts a handler again that ended with 0, and counts no crash for 200.
func TestExitCode(t *testing.T) {
	t.Parallel()
	for want, err := range map[int]error{
		2: nil, 1: errors.New("the port is taken"), 200: errors.Join(fmt.Errorf("run: %w", expiry.ErrStuck), errors.New("close: away")),
	} {
		if got := exitCode(err); got != want {
			t.Errorf("%v: %d, want %d", err, got, want)
		}
	}
}
