package triggers

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"userconnectivity/handler/fault"
)

// invocation reads one of testdata/invocations: bodies as the host sends them.
func invocation(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile("testdata/invocations/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func decode(body string) ([]message, error) {
	env, err := readEnvelope(httptest.NewRecorder(), httptest.NewRequest("POST", "/HeartbeatMessages", strings.NewReader(body)))
	if err != nil {
		return nil, err
	}
	return env.messages()
}

func TestMessagesAsTheHostSendsThem(t *testing.T) {
	t.Parallel()
	first := message{
		ID: "id-1", Sequence: "7", Delivery: 1, EnqueuedAt: time.Date(2026, 3, 1, 8, 15, 30, 250e6, time.UTC),
		Properties: map[string]any{"type": "user.offline", "epoch": 12.0, "ratio": 1.5, "at": "2026-03-01T08:15:30.25Z"},
	}
	second := message{ID: "id-2", Sequence: "8", Delivery: 2, EnqueuedAt: time.Date(2026, 3, 1, 8, 15, 30, 500e6, time.UTC), Properties: map[string]any{}}
	tests := []struct{ name, first, second string }{
		// The first body has a member called MessageId: it must not become the message's.
		{"json-objects", `{"a":1,"MessageId":"forged","nested":{"k":[1]},"arr":[1,2],"nul":null}`, `{"a":2}`},
		{"plain-text", "plain text", `{"a":2}`},
		{"json-strings", `"json string"`, `{"a":2}`},
		{"empty-body", "", `{"a":2}`},
		{"without-data-type", `{"a":1,"MessageId":"forged","nested":{"k":[1]},"arr":[1,2],"nul":null}`, "{}"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := decode(invocation(t, tt.name))
			if err != nil {
				t.Fatal(err)
			}
			first, second := first, second
			first.Body, second.Body = tt.first, tt.second
			if diff := cmp.Diff([]message{first, second}, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestOddMetadata(t *testing.T) {
	t.Parallel()
	bodies := `"messages":"[\"one\",\"two\",\"three\"]"`
	unknown := func(body string, m message) message {
		m.Body, m.ID, m.Delivery = body, "unknown-"+digest(body), max(m.Delivery, 1)
		return m
	}
	tests := []struct {
		name, body string
		want       []message
	}{
		{
			"no_metadata", `{"Data":{` + bodies + `}}`,
			[]message{unknown("one", message{}), unknown("two", message{}), unknown("three", message{})},
		},
		{
			"metadata_is_null", `{"Data":{` + bodies + `},"Metadata":null}`,
			[]message{unknown("one", message{}), unknown("two", message{}), unknown("three", message{})},
		},
		{
			"short_arrays", `{"Data":{` + bodies + `},"Metadata":{"MessageIdArray":"[\"a\"]","DeliveryCountArray":"[2,3]"}}`,
			[]message{{Body: "one", ID: "a", Delivery: 2}, unknown("two", message{Delivery: 3}), unknown("three", message{})},
		},
		{
			"long_arrays", `{"Data":{"messages":"[\"one\"]"},"Metadata":{"MessageIdArray":"[\"a\",\"b\"]","DeliveryCountArray":"[2,3]"}}`,
			[]message{{Body: "one", ID: "a", Delivery: 2}},
		},
		{
			"empty_arrays", `{"Data":{"messages":"[\"one\"]"},"Metadata":{"MessageIdArray":"[]","DeliveryCountArray":""}}`,
			[]message{unknown("one", message{})},
		},
		{
			"elements_of_other_types", `{"Data":{` + bodies + `},"Metadata":{"MessageIdArray":"[7,null,\"c\"]","DeliveryCountArray":"[\"x\",null,-4]","EnqueuedTimeUtcArray":"[0,\"yesterday\",\"2026-03-01T08:15:30\"]","ApplicationPropertiesArray":"[[],\"p\",{\"k\":1}]"}}`,
			[]message{
				unknown("one", message{}), unknown("two", message{}),
				{Body: "three", ID: "c", Delivery: 1, EnqueuedAt: time.Date(2026, 3, 1, 8, 15, 30, 0, time.UTC), Properties: map[string]any{"k": 1.0}},
			},
		},
		{
			"arrays_of_other_types", `{"Data":{` + bodies + `},"Metadata":{"MessageIdArray":{},"DeliveryCountArray":5,"EnqueuedTimeUtcArray":"{}","ApplicationPropertiesArray":null}}`,
			[]message{unknown("one", message{}), unknown("two", message{}), unknown("three", message{})},
		},
		{
			"single_message_metadata_is_not_read", `{"Data":{"messages":"[\"one\"]"},"Metadata":{"MessageId":"\"forged\"","DeliveryCount":"99","EnqueuedTimeUtc":"2026-03-01T08:15:30"}}`,
			[]message{unknown("one", message{})},
		},
		{
			"real_arrays_instead_of_strings", `{"Data":{"messages":["one",{"user":"ann"}]},"Metadata":{"MessageIdArray":["a","b"],"DeliveryCountArray":[1,2]}}`,
			[]message{{Body: "one", ID: "a", Delivery: 1}, {Body: `{"user":"ann"}`, ID: "b", Delivery: 2}},
		},
		{
			"numbers_and_null_as_bodies", `{"Data":{"messages":"[1,null,true]"},"Metadata":{"MessageIdArray":"[\"a\",\"b\",\"c\"]"}}`,
			[]message{{Body: "1", ID: "a", Delivery: 1}, {ID: "b", Delivery: 1}, {Body: "true", ID: "c", Delivery: 1}},
		},
		{
			"an_empty_id", `{"Data":{"messages":"[\"one\"]"},"Metadata":{"MessageIdArray":"[\"\"]"}}`,
			[]message{unknown("one", message{})},
		},
		{"no_messages", `{"Data":{"messages":"[]"},"Metadata":{}}`, []message{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := decode(tt.body)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestNotAnInvocation: what no batch can be read from fails as a whole, and trying again does not help.
func TestNotAnInvocation(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		"", "null", "[]", `"x"`, "{", `{"Data":{}}`, `{"Data":null}`, `{"Data":{"messages":null}}`, `{"Data":{"messages":"x"}}`,
		`{"Data":{"messages":"{}"}}`, `{"Data":{"messages":{}}}`, `{"Data":{"messages":7}}`, `{"Data":{"Messages":"[]"}}`,
		`{"Data":{"messages":"[\"one\""}}`, `{"Data":[],"Metadata":{}}`, `{"Data":{"messages":"[]"},"Metadata":[]}`,
	} {
		if got, err := decode(body); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v, %v; want an invalid invocation", body, got, err)
		}
	}
}

func TestIDsOfUnknownMessagesDiffer(t *testing.T) {
	t.Parallel()
	got, err := decode(`{"Data":{"messages":"[\"one\",\"two\",\"one\"]"}}`)
	if err != nil {
		t.Fatal(err)
	}
	if got[0].ID == got[1].ID || got[0].ID != got[2].ID || len(got[0].ID) > 60 {
		t.Errorf("ids %s, %s, %s", got[0].ID, got[1].ID, got[2].ID)
	}
}

// TestReplyIsNeverEmpty: an empty reply, or null, would hang the invocation.
func TestReplyIsNeverEmpty(t *testing.T) {
	t.Parallel()
	for _, lines := range [][]string{nil, {}, {"a line"}} {
		w := httptest.NewRecorder()
		succeed(w, lines...)
		var got map[string]json.RawMessage
		if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		wantLogs, _ := json.Marshal(append([]string{}, lines...))
		if w.Code != 200 || w.Header().Get("Content-Type") != "application/json" || string(got["Outputs"]) != "{}" ||
			string(got["Logs"]) != string(wantLogs) || string(got["ReturnValue"]) != "null" {
			t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
		}
	}
}
