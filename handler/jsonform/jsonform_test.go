package jsonform_test

import (
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"userconnectivity/handler/jsonform"
)

// TestTimes: each form writes times in its own layout and reads those of both.
func TestTimes(t *testing.T) {
	t.Parallel()
	type text struct {
		At   time.Time `json:"at"`
		Left time.Time `json:"left,omitzero"`
	}
	at := time.Date(2026, 11, 21, 6, 20, 0, 120_999_999, time.FixedZone("", 3600))
	for want, form := range map[string]json.Options{`{"at":"2026-11-21T05:20:00.120Z"}`: jsonform.Sent, `{"at":"2026-11-21T05:20:00.12Z"}`: jsonform.Stored} {
		if got, err := json.Marshal(text{At: at}, form); err != nil || string(got) != want {
			t.Errorf("%s, want %s; %v", got, want, err)
		}
		if got, err := json.Marshal(text{}, form); err != nil || string(got) != `{"at":null}` {
			t.Errorf("no time is %s, %v", got, err)
		}
		for written, want := range map[string]time.Time{
			`null`: {}, `""`: {}, `"2026-11-21T05:20:00.12Z"`: time.UnixMilli(1795238400120).UTC(), `"2026-11-21T06:20:00.120999999+01:00"`: at.UTC(),
		} {
			got := text{At: at}
			if err := json.Unmarshal([]byte(`{"at":`+written+`}`), &got, form); err != nil || got.At != want {
				t.Errorf("%s is read as %v, want %v; %v", written, got.At, want, err)
			}
		}
		for _, junk := range []string{`"soon"`, `7`, `{}`, `[]`, `true`, `"2026-11-21"`} {
			if err := json.Unmarshal([]byte(`{"at":`+junk+`}`), &text{}, form); err == nil {
				t.Errorf("%s is read as a time", junk)
			}
		}
	}
}
