package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"userconnectivity/handler/loadtest"
)

func TestParse(t *testing.T) {
	t.Parallel()
	o, out, err := parse(nil)
	if err != nil || o.Users != 10_000 || o.Invocations != 35_000 || o.MaxClients != 250 || o.Rate != 0 || o.Naive || out != "loadtest.html" {
		t.Errorf("without flags: %+v, %s, %v", o, out, err)
	}
	for _, c := range []struct {
		args string
		ok   func(o loadtest.Options) bool
	}{
		{"-pace published", func(o loadtest.Options) bool { return o.Rate == 19 }},
		{"-pace fast", func(o loadtest.Options) bool { return o.Rate == 0 }},
		{"-pace 300", func(o loadtest.Options) bool { return o.Rate == 300 }},
		{"-naive -processes 200", func(o loadtest.Options) bool { return o.Naive && o.Processes == 200 }},
		{"-url http://a/ -key k -queue-url http://a/q -redis-url redis://r", func(o loadtest.Options) bool {
			return o.URL == "http://a" && o.Key == "k" && o.QueueURL == "http://a/q" && o.RedisURL == "redis://r"
		}},
	} {
		if o, _, err := parse(strings.Fields(c.args)); err != nil || !c.ok(o) {
			t.Errorf("%s: %+v, %v", c.args, o, err)
		}
	}
	for _, args := range []string{
		"-pace 0", "-pace slow", "-users 0", "-invocations -1", "-workers 0", "-maxclients 0", "-processes -1", "more",
		"-redis-url redis://r", "-queue-url http://a", "-url http://a -processes 2", "-unknown",
	} {
		if _, _, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%s: no error", args)
		}
	}
}

func TestRunWritesTheReportAlsoWhenItFails(t *testing.T) {
	t.Parallel()
	for name, status := range map[string]int{"success": http.StatusOK, "failure": http.StatusServiceUnavailable} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
			defer server.Close()
			out := filepath.Join(t.TempDir(), "report.html")
			err := run(t.Context(), []string{"-url", server.URL, "-invocations", "50", "-workers", "4", "-out", out})
			if failed := err != nil; failed != (status != http.StatusOK) {
				t.Errorf("the error is %v", err)
			}
			if err != nil && err.Error() != "50 of 50 invocations failed: 503 Service Unavailable" {
				t.Errorf("the error is %v", err)
			}
			text, err := os.ReadFile(out)
			if err != nil || !strings.Contains(string(text), "50 invocations of 10,000 users") {
				t.Errorf("%d bytes of report, %v", len(text), err)
			}
		})
	}
}
