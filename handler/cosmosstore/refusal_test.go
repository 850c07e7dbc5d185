package cosmosstore_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/cosmosstore"
	"userconnectivity/handler/cosmosstore/cosmosfake"
	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/eventlog/eventlogtest"
	"userconnectivity/handler/presence"
)

// nested is a meta of so many levels.
func nested(levels int) json.RawMessage {
	return json.RawMessage(`{"a":` + strings.Repeat("[", levels-1) + strings.Repeat("]", levels-1) + `}`)
}

// refusing has the account refuse every write of one user's events with a status.
func refusing(fake *cosmosfake.Server, user string, status, substatus int) {
	fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault {
		if pk, _ := presence.PartitionKeyOf(op.ID); pk == presence.PartitionKey(user) && op.Kind != "read" {
			return &cosmosfake.Fault{Status: status, Substatus: substatus, Message: "no"}
		}
		return nil
	})
}

// TestRefusedEvents: what the account refuses of one event is left out, the event itself is refused only where it is
// never taken, and the others of the write are logged in any case.
func TestRefusedEvents(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		meta               json.RawMessage
		status, substatus  int
		refused, reduction string
	}{
		"meta nested too deep":        {meta: nested(130), reduction: "meta: the account refused it (400)"},
		"number beyond a double":      {meta: json.RawMessage(`{"n":1e309}`)},
		"bad request, whatever it is": {status: http.StatusBadRequest, refused: "refused the request (400)"},
		"too large, whatever it is":   {status: http.StatusRequestEntityTooLarge, refused: "refused the request (413)"},
		"partition is full":           {status: http.StatusForbidden, substatus: 1014, refused: "refused the request (403)"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake, server := account(t, cosmosfake.Config{})
			s := open(t, cosmosstore.Config{Endpoint: server.URL})
			if tt.status != 0 {
				refusing(fake, "odd", tt.status, tt.substatus)
			}
			odd := eventlogtest.Online("odd", 1)
			if tt.meta != nil {
				odd.Meta = tt.meta
			}
			updates := []eventlog.Update{eventlogtest.Sent(odd)}
			for n := range 20 {
				updates = append(updates, eventlogtest.Sent(eventlogtest.Online("ada", n)))
			}
			for range 2 { // also when it is repeated
				err := s.Write(t.Context(), updates)
				var refused *eventlog.RefusedError
				switch {
				case tt.refused == "" && err != nil:
					t.Fatal(err)
				case tt.refused != "" && (!errors.As(err, &refused) || len(refused.Events) != 1 || refused.Events[0].ID != odd.ID):
					t.Fatalf("write: %v, want that it refused %s", err, odd.ID)
				case tt.refused != "" && !strings.Contains(err.Error(), tt.refused):
					t.Errorf("write: %v, want it to say %q", err, tt.refused)
				}
			}
			for n := range 20 {
				if got := history(t, s, eventlogtest.Online("ada", n).ID); got != "detected queued" {
					t.Errorf("event %d of ada: %s", n, got)
				}
			}
			if tt.refused != "" {
				return
			}
			// The worker's write, and one more copy of the event, do not bring back what was left out.
			for _, u := range []eventlog.Update{eventlogtest.Handled(odd), eventlogtest.Sent(odd)} {
				if err := s.Write(t.Context(), []eventlog.Update{u}); err != nil {
					t.Fatal(err)
				}
			}
			if got := history(t, s, odd.ID); got != "detected queued processing done" {
				t.Errorf("history of the odd event: %s", got)
			}
			d, _ := fake.Document(databaseID, "events", presence.PartitionKey("odd"), odd.ID)
			if omitted, _ := d["omitted"].(string); omitted != tt.reduction {
				t.Errorf("omitted: %q, want %q", omitted, tt.reduction)
			}
			if r, err := s.Event(t.Context(), odd.ID); err != nil || (r.Event.Meta == nil) != (tt.reduction != "") || len(r.Event.Sessions) != 1 {
				t.Errorf("event %+v, %v", r.Event, err)
			} else if tt.reduction == "" && string(r.Event.Meta) != string(tt.meta) {
				t.Errorf("meta %s, want %s as it came", r.Event.Meta, tt.meta)
			}
		})
	}
}

// TestWorkerFindsNoRecord: its write makes the whole record, and leaves out what the account refuses.
func TestWorkerFindsNoRecord(t *testing.T) {
	t.Parallel()
	_, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	e := eventlogtest.Online("odd", 1)
	e.Meta = nested(130)
	for _, u := range []eventlog.Update{eventlogtest.Handled(e), eventlogtest.Sent(e)} {
		if err := s.Write(t.Context(), []eventlog.Update{u}); err != nil {
			t.Fatal(err)
		}
	}
	if got := history(t, s, e.ID); got != "detected queued processing done" {
		t.Errorf("history: %s", got)
	}
}

// TestMembersOfOthersStay: names that another version or another program added to a document, and to a step of its
// history, outlive every write, and numbers keep their digits.
func TestMembersOfOthersStay(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	e := eventlogtest.Online("ada", 1)
	again := e
	again.Epoch += 1000 // made again after a rollback of Redis
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)}))
	if _, err := s.Apply(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	added := func(d map[string]any) {
		d["away"], d["score"] = map[string]any{"since": "2026"}, json.Number("1.000e400")
		if steps, ok := d["history"].([]any); ok {
			steps[0].(map[string]any)["by"] = "auditor"
		}
	}
	event, _ := fake.Document(databaseID, "events", presence.PartitionKey("ada"), e.ID)
	user, _ := fake.Document(databaseID, "users", "ada", "ada")
	added(event)
	added(user)
	late := eventlogtest.Handled(e)
	for i := range late.Steps[1:] {
		late.Steps[i+1].Attempt.Delivery = 2
	}
	for name, u := range map[string]eventlog.Update{"processed": eventlogtest.Handled(e), "redelivered": late, "made again": {Event: again, Steps: late.Steps}} {
		must(s.Write(t.Context(), []eventlog.Update{u}))
		d, _ := fake.Document(databaseID, "events", presence.PartitionKey("ada"), e.ID)
		first := d["history"].([]any)[0].(map[string]any)
		if d["score"] != json.Number("1.000e400") || d["away"].(map[string]any)["since"] != "2026" || first["by"] != "auditor" {
			t.Errorf("%s: the document is %v", name, d)
		}
	}
	for n, online := range map[int]bool{2: true, 3: false, 4: true} { // patch, and read and replace
		next := eventlogtest.Offline("ada", n)
		if online {
			next = eventlogtest.Online("ada", n)
			next.Type = presence.SessionStarted
		}
		if _, err := s.Apply(t.Context(), next); err != nil {
			t.Fatal(err)
		}
		if d, _ := fake.Document(databaseID, "users", "ada", "ada"); d["score"] != json.Number("1.000e400") || d["away"] == nil {
			t.Errorf("after event %d the users record is %v", n, d)
		}
	}
}

// TestRecordThatCannotBeRead: a record of another form holds up no other event, and stays as it is.
func TestRecordThatCannotBeRead(t *testing.T) {
	t.Parallel()
	fake, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	newer, other := eventlogtest.Online("ada", 1), eventlogtest.Online("bob", 1)
	if err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(newer)}); err != nil {
		t.Fatal(err)
	}
	d, _ := fake.Document(databaseID, "events", presence.PartitionKey("ada"), newer.ID)
	d["history"], d["fresh"] = map[string]any{"v3": true}, false
	var refused *eventlog.RefusedError
	err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Handled(newer), eventlogtest.Sent(other)})
	if !errors.As(err, &refused) || len(refused.Events) != 1 || !strings.Contains(err.Error(), "cannot be read by this version") {
		t.Errorf("write: %v", err)
	}
	if got := history(t, s, other.ID); got != "detected queued" {
		t.Errorf("the other event: %s", got)
	}
}

// TestAccountThatRefuses: each way of refusing is told with its true reason, in a time that does not depend on the
// caller's, and passes.
func TestAccountThatRefuses(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		fault cosmosfake.Fault
		want  string
		most  int // requests for one event
	}{
		"write region changes":   {cosmosfake.Fault{Status: 403, Substatus: 3}, "takes no writes in the region that was asked (403, substatus 3)", 2},
		"region is not there":    {cosmosfake.Fault{Status: 403, Substatus: 1008}, "does not know the account (403, substatus 1008)", 2},
		"role is missing":        {cosmosfake.Fault{Status: 403, Substatus: 5300}, "refused COSMOS_KEY (403)", 1},
		"firewall":               {cosmosfake.Fault{Status: 403, Message: "blocked by your account firewall settings"}, "firewall of the account", 1},
		"key is wrong or old":    {cosmosfake.Fault{Status: 401}, "refused COSMOS_KEY (401)", 1},
		"container is gone":      {cosmosfake.Fault{Status: 404, Substatus: 1003}, "container events of database presence does not exist", 1},
		"session is not there":   {cosmosfake.Fault{Status: 404, Substatus: 1002}, "has not seen the last write yet (404, substatus 1002)", 8},
		"container of other key": {cosmosfake.Fault{Status: 400, Substatus: 1001}, "has another partition key than this program needs", 1},
		"partition is moving":    {cosmosfake.Fault{Status: 410, Substatus: 1007}, "answered 410, substatus 1007", 4},
		"conflict inside":        {cosmosfake.Fault{Status: 449}, "answered 449", 4},
		"time is over":           {cosmosfake.Fault{Status: 408}, "answered 408", 4},
		"overloaded":             {cosmosfake.Fault{Status: 503, Substatus: 21008}, "answered 503, substatus 21008", 4},
		"throttled for long":     {cosmosfake.Fault{Status: 429, Substatus: 3200, RetryAfter: time.Hour}, "throttled (429)", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			fake, server := account(t, cosmosfake.Config{})
			s := open(t, cosmosstore.Config{Endpoint: server.URL, Timeout: 10 * time.Minute})
			e := eventlogtest.Online("ada", 1)
			if err := s.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			fake.Faults(func(op cosmosfake.Operation) *cosmosfake.Fault {
				if op.Kind == "account" || op.Kind == "database" {
					return nil
				}
				return &tt.fault
			})
			err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)})
			if !errors.Is(err, eventlog.ErrUnavailable) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("write: %v\nwant ErrUnavailable, and it to say %q", err, tt.want)
			}
			if n := fake.Requests()["create"]; n < 1 || n > tt.most {
				t.Errorf("%d requests, want 1 to %d", n, tt.most)
			}
			if _, known, err := s.User(t.Context(), "ada"); known || !errors.Is(err, eventlog.ErrUnavailable) {
				t.Errorf("user: known %v, %v; want ErrUnavailable: nothing is known", known, err)
			}
			if _, err := s.Event(t.Context(), e.ID); !errors.Is(err, eventlog.ErrUnavailable) || errors.Is(err, eventlog.ErrNotFound) {
				t.Errorf("event: %v, want ErrUnavailable", err)
			}
			fake.Faults(nil)
			if err := s.Write(t.Context(), []eventlog.Update{eventlogtest.Sent(e)}); err != nil {
				t.Errorf("write when it is mended: %v", err)
			}
		})
	}
}

// TestAccountThatIsGone: a short call is told why there is no answer, though the official client still waits before it
// tries again.
func TestAccountThatIsGone(t *testing.T) {
	t.Parallel()
	_, server := account(t, cosmosfake.Config{})
	s := open(t, cosmosstore.Config{Endpoint: server.URL})
	if err := s.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := s.Ping(ctx)
	if !errors.Is(err, eventlog.ErrUnavailable) || !strings.Contains(err.Error(), "cannot be reached") || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("ping: %v, want the reason of the attempt before", err)
	}
}
