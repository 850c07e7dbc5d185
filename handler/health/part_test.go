package health_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/health"
)

func TestPartIsOneObject(t *testing.T) {
	t.Parallel()
	type figures struct {
		Running bool   `json:"running"`
		Left    *int64 `json:"left,omitempty"`
	}
	for want, part := range map[string]health.Part{
		`{"status":"ok","ageMs":0}`:                                         {},
		`{"status":"down","detail":"start <it>","ageMs":1500}`:              {Status: health.Down, Detail: "start <it>", Age: 1500 * time.Millisecond},
		`{"status":"degraded","detail":"a \"b\"","ageMs":0,"running":true}`: {Status: health.Degraded, Detail: `a "b"`, Figures: figures{Running: true}},
		`{"status":"ok","ageMs":0,"a":1}`:                                   {Figures: map[string]any{"a": 1}},
		`{"status":"unknown","detail":"it runs elsewhere","ageMs":0}`:       {Status: health.Unknown, Detail: "it runs elsewhere", Figures: struct{}{}},
	} {
		got, err := part.MarshalJSON()
		if err != nil || string(got) != want {
			t.Errorf("%s, %v, want %s", got, err, want)
		}
	}
	if text, err := json.Marshal(health.Part{Figures: 5}); err == nil || !strings.Contains(err.Error(), "int") {
		t.Errorf("%s, %v", text, err)
	}
}

func TestPartIsAsWellAsTheWorstThatWasAdded(t *testing.T) {
	t.Parallel()
	var p health.Part
	p.Note("by the way")
	p.Warn()
	p.Warn("", "")
	if p.Status != "" || p.Detail != "by the way" {
		t.Errorf("%+v", p)
	}
	p.Add(health.Down, "it is gone")
	p.Warn("full", "full", "slow")
	p.Add(health.Unknown, "no answer")
	if want := "by the way; it is gone; full; slow; no answer"; p.Status != health.Down || p.Detail != want {
		t.Errorf("%+v", p)
	}
}

func TestWorst(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		parts []health.Status
		want  health.Status
	}{
		{nil, health.OK},
		{[]health.Status{"", health.OK}, health.OK},
		{[]health.Status{health.Unknown, health.OK}, health.OK},
		{[]health.Status{health.OK, health.Degraded, health.Unknown}, health.Degraded},
		{[]health.Status{health.Down, health.Degraded}, health.Down},
	} {
		parts := map[string]health.Part{}
		for i, s := range tt.parts {
			parts[string(rune('a'+i))] = health.Part{Status: s}
		}
		if got := health.Worst(parts); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.parts, got, tt.want)
		}
	}
}

func TestRises(t *testing.T) {
	t.Parallel()
	var r health.Rises
	start := time.Unix(1_800_000_000, 0)
	for i, step := range []struct {
		after       time.Duration
		value, want int64
	}{
		{0, 0, 0},
		{time.Second, 3, 3},
		{30 * time.Second, 3, 3},
		{40 * time.Second, 5, 5},
		{99 * time.Second, 5, 5},
		{101 * time.Second, 5, 0}, // a minute after it last rose
		{102 * time.Second, 6, 1},
		{103 * time.Second, 2, 2}, // begun anew
	} {
		if got := r.Within(time.Minute, "c", step.value, start.Add(step.after)); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got, step.want)
		}
	}
	if got := r.Within(time.Minute, "other", 7, start); got != 7 {
		t.Errorf("another counter: %d", got)
	}
}
