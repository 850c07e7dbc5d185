package localhost

import (
	"fmt"
	"strings"
	"testing"
)

// recordedReply is a reply of a handler to a call that is not HTTP, and what the Functions host made of it.
type recordedReply struct {
	Status      int
	ContentType *string
	Body        string
	Connection  string
	Outcome     string
}

func TestRepliesAreJudgedAsRecorded(t *testing.T) {
	t.Parallel()
	var all []recordedReply
	readTestdata(t, "replies.json", &all)
	if len(all) != 14 {
		t.Fatalf("%d recorded replies, want 14", len(all))
	}
	// A reply that hangs ends with its handler, so each outcome has a host of its own.
	for _, outcome := range []string{"succeeded", "failed", "hangs"} {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			replies := map[string]reply{}
			app := testApp{
				functions: map[string]string{},
				script:    func(c call) reply { return replies[strings.TrimPrefix(c.URI, "/")] },
			}
			if outcome == "hangs" {
				app.host = map[string]any{"functionTimeout": "00:00:00.3"}
			}
			for i, r := range all {
				name := fmt.Sprintf("Reply%d", i)
				if r.Outcome == outcome {
					replies[name] = reply{Status: r.Status, ContentType: r.ContentType, Body: r.Body, Drop: r.Connection == "dropped"}
				}
			}
			host := start(t, app)
			for name, do := range replies {
				f := &function{name: name, trigger: binding{Name: "msg", DataType: "string", Cardinality: "one"}}
				err := host.invoke(name, messageEnvelope(f, message{ID: "m"}, "t", testTime))
				switch outcome {
				case "succeeded":
					if err != nil {
						t.Errorf("%+v failed: %v", do, err)
					}
				case "failed":
					if err == nil || strings.Contains(err.Error(), "timeout") || strings.Contains(err.Error(), "Timeout") {
						t.Errorf("%+v: %v, want a failure at once", do, err)
					}
				case "hangs":
					if err == nil || !strings.Contains(err.Error(), errFunctionTimeout.Error()) {
						t.Errorf("%+v: %v, want that the time is over", do, err)
					}
					// Killed and started again, which never counts.
					if again := host.waitReady(t); again.HandlerPID == host.HandlerPID {
						t.Error("the handler was not started again")
					} else {
						host.Status = again
					}
				}
			}
			if outcome == "succeeded" && (!strings.Contains(host.log.String(), "msg=a function=Reply2") || !strings.Contains(host.log.String(), "msg=b function=Reply3")) {
				t.Errorf("the logs of the replies are not in the log:\n%s", host.log)
			}
			if err := host.end(t); err != nil {
				t.Errorf("the host ended with %v", err)
			}
		})
	}
}

func TestResultsThatAreNone(t *testing.T) {
	t.Parallel()
	for _, reply := range []string{`[]`, `1`, `"x"`, `{"Logs":"x"}`, `{"Outputs":[]}`, `{} {}`} {
		if _, hangs, err := judge(200, "application/json", []byte(reply)); err == nil || hangs {
			t.Errorf("%s: %v, %v, want a failure", reply, hangs, err)
		}
	}
	if logs, _, err := judge(200, "application/json; charset=utf-8", []byte(`{"outputs":{"x":1},"logs":["a"],"other":1}`)); err != nil || len(logs) != 1 {
		t.Errorf("letter case of the members counts: %v, %v", logs, err)
	}
	if _, hangs, _ := judge(200, "application/json", []byte(" null\n")); !hangs {
		t.Error("null with white space does not hang")
	}
}

func TestFunctionTimeoutOfACallWithoutReply(t *testing.T) {
	t.Parallel()
	r := start(t, testApp{
		functions: map[string]string{},
		host:      map[string]any{"functionTimeout": "00:00:00.2"},
		script:    func(c call) reply { return reply{Stream: c.Method != "GONE"} },
	})
	// The reply has begun and does not end.
	err := r.invoke("F", newEnvelope(&function{name: "F"}, "x", testTime))
	if err == nil || !strings.Contains(err.Error(), errFunctionTimeout.Error()) {
		t.Errorf("error %v", err)
	}
	if again := r.waitReady(t); again.HandlerPID == r.HandlerPID {
		t.Error("the handler was not started again")
	}
}
