package localhost

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestSchedules(t *testing.T) {
	t.Parallel()
	from := time.Date(2026, 1, 1, 10, 0, 7, 5e8, time.UTC)
	for text, want := range map[string]string{
		"*/15 * * * * *":     "2026-01-01T10:00:15Z",
		"0 */5 * * * *":      "2026-01-01T10:05:00Z",
		"*/5 * * * *":        "2026-01-01T10:05:00Z",
		"0 0 9 * * MON-FRI":  "2026-01-02T09:00:00Z",
		"0 0 0 29 2 *":       "2028-02-29T00:00:00Z",
		"00:10:00":           "2026-01-01T10:10:07.5Z",
		"30 59 23 31 12 *":   "2026-12-31T23:59:30Z",
		"0,20,40 * * * * *":  "2026-01-01T10:00:20Z",
		"0 0 10-12 * * Thu ": "2026-01-01T11:00:00Z",
	} {
		s, err := parseSchedule(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := s.next(from); err != nil || got.Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %v, %v, want %s", text, got, err, want)
		}
	}
	due := time.Date(2026, 1, 1, 10, 0, 15, 0, time.UTC)
	if got, _ := cron("*/15 * * * * *").next(due); !got.Equal(due.Add(15 * time.Second)) {
		t.Errorf("next after a due time is %v", got)
	}
}

func TestMonitored(t *testing.T) {
	t.Parallel()
	no := false
	for _, test := range []struct {
		schedule   string
		useMonitor *bool
		want       bool
	}{
		{"0 * * * * *", nil, true},
		{"0 * * * * *", &no, false},
		{"*/30 * * * * *", nil, false},
		{"0,30 0 * * * *", nil, false},
		{"00:01:00", nil, true},
		{"00:00:59", nil, false},
	} {
		s, err := parseSchedule(test.schedule)
		if err != nil {
			t.Fatal(err)
		}
		if got := monitored(&function{schedule: s, trigger: binding{UseMonitor: test.useMonitor}}, testTime); got != test.want {
			t.Errorf("%s: %v", test.schedule, got)
		}
	}
}

func TestTimersRunOneCallAtATime(t *testing.T) {
	t.Parallel()
	calls := make(chan call, 1000) // more than the test lasts for
	var running, most atomic.Int32
	r := start(t, testApp{
		functions: map[string]string{
			"Fast":    fn(timerFunction, "00:00:00.02"),
			"Startup": `{"bindings":[{"type":"timerTrigger","name":"timer","schedule":"0 0 0 1 1 *","runOnStartup":true}]}`,
			"Never":   fn(timerFunction, "0 0 0 1 1 *"),
			"Off":     `{"bindings":[{"type":"timerTrigger","name":"timer","schedule":"* * * * * *","runOnStartup":true}]}`,
		},
		environ: []string{"AzureWebJobs_Off_Disabled=true"},
		script: func(c call) reply {
			if c.URI == "/Fast" {
				if n := running.Add(1); n > most.Load() {
					most.Store(n)
				}
				defer running.Add(-1)
			}
			calls <- c
			if strings.HasSuffix(c.URI, "Startup") {
				return ok
			}
			return reply{Status: 500} // a failure does not end a timer
		},
	})
	seen := map[string]int{}
	for seen["/Fast"] < 5 || seen["/Startup"] < 1 {
		c := next(t, calls)
		seen[c.URI]++
		if c.URI == "/Startup" && !strings.Contains(string(c.Body), `"Last":"0001-01-01T00:00:00+00:00"`) {
			t.Errorf("first call: %s", c.Body)
		}
	}
	if err := r.end(t); err != nil {
		t.Errorf("the host ended with %v", err)
	}
	if seen["/Startup"] != 1 || seen["/Off"] != 0 || seen["/Never"] != 0 || most.Load() != 1 {
		t.Errorf("calls %v, %d at a time", seen, most.Load())
	}
}
