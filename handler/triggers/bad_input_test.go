package triggers_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// problem is the body of an error.
type problem struct {
	Detail string
	Errors []fault.FieldError
}

// refuses makes a call and wants the status, the pointer of a wrong field ("" for the whole input, "-" for no
// field, "*" for any) and the text in what the caller is told of it. An answer repeats little of its request.
func (b *bench) refuses(t *testing.T, c call, status int, pointer, text string) {
	t.Helper()
	c.loose = true
	a := b.do(c)
	var p problem
	if err := json.Unmarshal(a.Body, &p); err != nil || a.Status != status {
		t.Errorf("%s %.80s: %d %s, want %d", c.method, c.path, a.Status, a.Body, status)
		return
	}
	if pointer == "-" {
		if len(p.Errors) > 0 || !strings.Contains(p.Detail, text) {
			t.Errorf("%s %.80s: %s, want %q", c.method, c.path, a.Body, text)
		}
		return
	}
	for _, e := range p.Errors {
		if (e.Pointer == pointer || pointer == "*") && len(a.Body) < 2000 && strings.Contains(e.Detail, text) {
			return
		}
	}
	t.Errorf("%s %.80s: %.1000s (%d bytes), want %q at %q", c.method, c.path, a.Body, len(a.Body), text, pointer)
}

// unchanged runs test and fails when anything that is stored differs after it.
func (b *bench) unchanged(test func()) {
	b.t.Helper()
	before := b.dump()
	test()
	if after := b.dump(); after != before {
		b.t.Errorf("stored before:\n%q\nafter:\n%q", before, after)
	}
}

func TestBadHeartbeats(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann", "meta": object{"kept": true}})
	long := strings.Repeat("x", 129)
	groups := func(n int) string {
		names := make([]string, n)
		for i := range names {
			names[i] = fmt.Sprintf(`"g%d"`, i)
		}
		return "[" + strings.Join(names, ",") + "]"
	}
	const ids = "A-Z a-z 0-9 . _ ~ : @ | + = -"
	b.unchanged(func() {
		for _, tt := range []struct{ body, pointer, text string }{
			{``, "", "not JSON"},
			{` `, "", "not JSON"},
			{`{`, "", "not JSON at byte 1"},
			{`{"user":"ann"`, "", "not JSON at byte 13"},
			{`{"user":"ann",}`, "", "not JSON"},
			{`{user:"ann"}`, "", "not JSON"},
			{`{'user':'ann'}`, "", "not JSON"},
			{`{"user":"ann"}{}`, "", "not JSON at byte 14"},
			{`{"user":"ann"} x`, "", "not JSON at byte 15"},
			{`{"user":"ann"},`, "", "not JSON"},
			{"\x00", "", "not JSON"},
			{"{\"user\":\"ann\"}\x00", "", "not JSON"},
			{"\ufeff", "", "not JSON"},
			{"\ufeff\ufeff" + `{"user":"ann"}`, "", "not JSON"},
			{`{"user":"ann"}` + "\ufeff", "", "not JSON"},
			{`{"user":` + "\ufeff" + `"ann"}`, "/user", "not JSON"},
			{"{\"user\":\"a\xffn\"}", "/user", "not JSON"},
			{"{\"user\":\"ann\",\"meta\":{\"a\":\"\xc3\x28\"}}", "/meta/a", "not JSON"},
			{`{"user":"ann","meta":{"a":"\ud800"}}`, "/meta/a", "not JSON"},
			{"{\"user\":\"a\nn\"}", "/user", "not JSON"},
			{`[]`, "", "must be a JSON object"},
			{`"ann"`, "", "must be a JSON object"},
			{`7`, "", "must be a JSON object"},
			{`null`, "/user", "must not be empty"},
			{`{}`, "/user", "must not be empty"},
			{`{"user":null}`, "/user", "must not be empty"},
			{`{"user":""}`, "/user", "must not be empty"},
			{`{"user":7}`, "/user", "must be a string"},
			{`{"user":["ann"]}`, "/user", "must be a string"},
			{`{"user":{"id":"ann"}}`, "/user", "must be a string"},
			{`{"user":"` + long + `"}`, "/user", "at most 128 characters, has 129"},
			{`{"user":"."}`, "/user", "must not be . or .."},
			{`{"user":".."}`, "/user", "must not be . or .."},
			{`{"user":"a b"}`, "/user", ids},
			{`{"user":"a/b"}`, "/user", ids},
			{`{"user":"a,b"}`, "/user", ids},
			{`{"user":"a%b"}`, "/user", ids},
			{`{"user":"a\u0000"}`, "/user", ids},
			{`{"user":"a\n"}`, "/user", ids},
			{`{"user":"a\u007f"}`, "/user", ids},
			{`{"user":"Zoë"}`, "/user", ids},
			{`{"user":"\ud83d\ude00"}`, "/user", ids},
			{`{"User":"ann"}`, "/User", "not a known field"},
			{`{"user":"ann","userId":"bob"}`, "/userId", "not a known field"},
			{`{"user":"ann","a/b~c":1}`, "/a~1b~0c", "not a known field"},
			{`{"user":"ann","user":"bob"}`, "/user", "appears twice"},
			{`{"user":"ann","\u0075ser":"bob"}`, "/user", "appears twice"},
			{`{"user":"ann","meta":{"a":1,"a":2}}`, "/meta/a", "appears twice"},
			{`{"user":"ann","session":""}`, "/session", "must not be empty"},
			{`{"user":"ann","session":"` + long + `"}`, "/session", "at most 128 characters"},
			{`{"user":"ann","session":"a b"}`, "/session", ids},
			{`{"user":"ann","session":7}`, "/session", "must be a string"},
			{`{"user":"ann","ttlSeconds":4}`, "/ttlSeconds", "between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":0}`, "/ttlSeconds", "between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":-45}`, "/ttlSeconds", "between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":3601}`, "/ttlSeconds", "between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":9223372036854775807}`, "/ttlSeconds", "between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":18446744073709551661}`, "/ttlSeconds", "between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":45.5}`, "/ttlSeconds", "an integer between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":4.55e1}`, "/ttlSeconds", "an integer between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":45.0000000000000000000000000001}`, "/ttlSeconds", "an integer between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":1e4}`, "/ttlSeconds", "between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":1e-1}`, "/ttlSeconds", "an integer between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":1e999999999999999999999}`, "/ttlSeconds", "an integer between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":45.}`, "/ttlSeconds", "not JSON"},
			{`{"user":"ann","ttlSeconds":+45}`, "/ttlSeconds", "not JSON"},
			{`{"user":"ann","ttlSeconds":045}`, "", "not JSON"},
			{`{"user":"ann","ttlSeconds":0x2d}`, "", "not JSON"},
			{`{"user":"ann","ttlSeconds":NaN}`, "/ttlSeconds", "not JSON"},
			{`{"user":"ann","ttlSeconds":-0.0}`, "/ttlSeconds", "between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":"45"}`, "/ttlSeconds", "an integer between 5 and 3600"},
			{`{"user":"ann","ttlSeconds":true}`, "/ttlSeconds", "an integer between 5 and 3600"},
			{`{"user":"ann","graceSeconds":-1}`, "/graceSeconds", "between 0 and 600"},
			{`{"user":"ann","graceSeconds":601}`, "/graceSeconds", "between 0 and 600"},
			{`{"user":"ann","graceSeconds":0.5}`, "/graceSeconds", "an integer between 0 and 600"},
			{`{"user":"ann","graceSeconds":[]}`, "/graceSeconds", "an integer between 0 and 600"},
			{`{"user":"ann","seq":-1}`, "/seq", "between 0 and 9007199254740991"},
			{`{"user":"ann","seq":9007199254740992}`, "/seq", "between 0 and 9007199254740991"},
			{`{"user":"ann","seq":9.007199254740992e15}`, "/seq", "between 0 and 9007199254740991"},
			{`{"user":"ann","seq":9007199254740991.5}`, "/seq", "an integer between 0 and 9007199254740991"},
			{`{"user":"ann","seq":1.5}`, "/seq", "an integer between 0 and 9007199254740991"},
			{`{"user":"ann","seq":"1"}`, "/seq", "an integer between 0 and 9007199254740991"},
			{`{"user":"ann","seq":1e400}`, "/seq", "an integer between 0 and 9007199254740991"},
			{`{"user":"ann","groups":` + groups(17) + `}`, "/groups", "at most 16 items, has 17"},
			{`{"user":"ann","groups":"north"}`, "/groups", "must be a JSON array"},
			{`{"user":"ann","groups":{}}`, "/groups", "must be a JSON array"},
			{`{"user":"ann","groups":["a",7]}`, "/groups/1", "must be a string"},
			{`{"user":"ann","groups":["a",null]}`, "/groups/1", "must not be empty"},
			{`{"user":"ann","groups":["a","b c"]}`, "/groups/1", ids},
			{`{"user":"ann","groups":["a","b","a"]}`, "/groups/2", "repeats a group"},
			{`{"user":"ann","groups":["` + long + `"]}`, "/groups/0", "at most 128 characters"},
			{`{"user":"ann","meta":"text"}`, "/meta", "must be a JSON object"},
			{`{"user":"ann","meta":[]}`, "/meta", "must be a JSON object"},
			{`{"user":"ann","meta":7}`, "/meta", "must be a JSON object"},
			{`{"user":"ann","meta":false}`, "/meta", "must be a JSON object"},
			{`{"user":"ann","meta":{"a":"` + strings.Repeat("x", 1024-7) + `"}}`, "/meta", "at most 1024 bytes as compact JSON, has 1025"},
			{`{"user":"ann","meta":{"a":` + strings.Repeat("[", 1000) + strings.Repeat("]", 1000) + `}}`, "/meta", "at most 1024 bytes"},
			{`{"user":"ann","meta":{"a":` + strings.Repeat("[", 129) + strings.Repeat("]", 129) + `}}`, "/meta", "at most 32 levels"},
			{`{"user":"ann","meta":{"a":` + strings.Repeat("[", 32) + strings.Repeat("]", 32) + `}}`, "/meta", "at most 32 levels"},
			{`{"user":"ann","meta":` + strings.Repeat(`{"\"[":`, 32) + "{}" + strings.Repeat("}", 32) + `}`, "/meta", "at most 32 levels"},
			{`{"user":"ann","meta":{"n":1e309}}`, "/meta", "1.7976931348623157e+308"},
			{`{"user":"ann","meta":{"n":-1E+309}}`, "/meta", "1.7976931348623157e+308"},
			{`{"user":"ann","meta":{"n":[0,{"m":1.0e99999}]}}`, "/meta", "1.7976931348623157e+308"},
			{`{"user":"ann","meta":{"n":1e-400}}`, "/meta", "a float64 holds"},
			{`{"user":"ann","meta":{"n":9007199254740992}}`, "/meta", "between -9007199254740991 and 9007199254740991"},
			{`{"user":"ann","meta":{"n":-9007199254740992}}`, "/meta", "between -9007199254740991 and 9007199254740991"},
			{`{"user":"ann","meta":{"n":` + strings.Repeat("9", 1000) + `}}`, "/meta", "between -9007199254740991 and 9007199254740991"},
			{`{"user":"ann","meta":{"\ud800":1}}`, "*", "not JSON"},
			{`{"user":"ann","meta":{"a":{"b":1,"\u0062":2}}}`, "/meta/a/b", "appears twice"},
			{`{"user":"ann","meta":{"a":` + strings.Repeat("[", 12000), "*", "not JSON"},
			{strings.Repeat("[", 16000), "", "must be a JSON object"},
			{`{"user":"ann","` + strings.Repeat("x", 16000) + `":1}`, "*", "not a known field"},
			{`{"user":"b c","session":"","ttlSeconds":1,"graceSeconds":900,"seq":-1}`, "/seq", "between"},
		} {
			b.refuses(t, call{method: "POST", path: "/api/heartbeat", body: tt.body}, 400, tt.pointer, tt.text)
		}
	})
	// All that is wrong is told at once.
	var p problem
	b.post("/api/heartbeat", `{"user":"b c","session":"","ttlSeconds":1,"graceSeconds":900,"seq":-1,"groups":["a","a"],"meta":[]}`).into(400, &p)
	if len(p.Errors) != 7 {
		t.Errorf("%d of 7 faults are told: %+v", len(p.Errors), p.Errors)
	}
}

func TestBadBulks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann"})
	items := func(item string, n int) string {
		return "[" + strings.TrimSuffix(strings.Repeat(item+",", n), ",") + "]"
	}
	b.unchanged(func() {
		for _, tt := range []struct{ path, field, item string }{
			{"/api/heartbeats", "heartbeats", `{"user":"ann"}`},
			{"/api/leaves", "leaves", `{"user":"ann"}`},
			{"/api/users/query", "users", `"ann"`},
		} {
			for _, bad := range []struct{ body, pointer, text string }{
				{``, "", "not JSON"},
				{`{"` + tt.field + `":[`, "/" + tt.field, "not JSON"},
				{`{"` + tt.field + `":[]} true`, "", "not JSON"},
				{`[` + tt.item + `]`, "", "must be a JSON object"},
				{`{}`, "/" + tt.field, "array of at most 1000 items"},
				{`null`, "/" + tt.field, "array of at most 1000 items"},
				{`{"` + tt.field + `":null}`, "/" + tt.field, "array of at most 1000 items"},
				{`{"` + tt.field + `":{}}`, "/" + tt.field, "must be a JSON array"},
				{`{"` + tt.field + `":"ann"}`, "/" + tt.field, "must be a JSON array"},
				{`{"` + tt.field + `":` + items(tt.item, 1001) + `}`, "/" + tt.field, "at most 1000 items, has 1001"},
				{`{"` + tt.field + `":[],"more":1}`, "/more", "not a known field"},
				{`{"` + tt.field + `":[],"` + tt.field + `":[]}`, "/" + tt.field, "appears twice"},
				{`{"` + tt.field + `":` + strings.Repeat("[", 2<<20) + `}`, "*", ""},
			} {
				b.refuses(t, call{method: "POST", path: tt.path, body: bad.body}, 400, bad.pointer, bad.text)
			}
		}
		for _, tt := range []struct{ body, pointer, text string }{
			{`{"users":["ann","b c"]}`, "/users/1", "characters"},
			{`{"users":["ann",null]}`, "/users/1", "must not be empty"},
			{`{"users":["ann",7]}`, "/users/1", "must be a string"},
			{`{"users":["."]}`, "/users/0", "must not be . or .."},
		} {
			b.refuses(t, call{method: "POST", path: "/api/users/query", body: tt.body}, 400, tt.pointer, tt.text)
		}
		for _, tt := range []struct{ body, pointer, text string }{
			{`{"user":""}`, "/user", "must not be empty"},
			{`{"user":"ann","session":""}`, "/session", "must not be empty"},
			{`{"user":"ann","seq":-1}`, "/seq", "between 0 and 9007199254740991"},
			{`{"user":"ann","ttlSeconds":5}`, "/ttlSeconds", "not a known field"},
			{`{"user":"ann"}[]`, "", "not JSON"},
			{`"ann"`, "", "must be a JSON object"},
		} {
			b.refuses(t, call{method: "POST", path: "/api/leave", body: tt.body}, 400, tt.pointer, tt.text)
		}
	})
}

func TestBodiesThatAreTooLarge(t *testing.T) {
	t.Parallel()
	b := setup(t)
	pad := func(body string, size int) string { return body + strings.Repeat(" ", size-len(body)) }
	b.post("/api/heartbeat", pad(`{"user":"ann"}`, 16<<10)).is(200)
	b.post("/api/heartbeats", pad(`{"heartbeats":[]}`, 4<<20)).is(200)
	b.unchanged(func() {
		for path, limit := range map[string]int{"/api/heartbeat": 16 << 10, "/api/leave": 16 << 10, "/api/heartbeats": 4 << 20, "/api/leaves": 4 << 20, "/api/users/query": 4 << 20} {
			for _, size := range []int{limit + 1, 10 << 20} {
				b.refuses(t, call{method: "POST", path: path, body: pad(`{"user":"ann"}`, size)}, 413, "-", fmt.Sprint("at most ", limit, " bytes"))
			}
		}
	})
}

func TestBodiesOfAnotherType(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.unchanged(func() {
		for _, path := range []string{"/api/heartbeat", "/api/heartbeats", "/api/leave", "/api/leaves", "/api/users/query"} {
			for _, ct := range []string{
				"text/plain", "application/x-www-form-urlencoded", "application/jsonx", "application/problem+json", "application/json;;", "json", "application/json, text/plain", "\xff", "",
				"application/cloudevents+json", "application/json; charset=utf-16", "application/json; charset=iso-8859-1", strings.Repeat("x", 5000), "multipart/form-data; boundary=x",
			} {
				b.refuses(t, call{method: "POST", path: path, body: `{"user":"ann"}`, header: http.Header{"Content-Type": {ct}}}, 415, "-", "application/json")
			}
			// What a page of another site may send without being asked for its right to has no type, or another one.
			b.refuses(t, call{method: "POST", path: path, body: `{"user":"ann"}`, header: http.Header{"Content-Type": nil}}, 415, "-", "application/json")
			b.refuses(t, call{method: "POST", path: path, body: `{"user":"ann"}`, header: http.Header{"Content-Type": {"application/json", "text/plain"}}}, 415, "-", "application/json")
			b.refuses(t, call{method: "POST", path: path, header: http.Header{"Content-Length": {"0"}}}, 415, "-", "application/json")
			for _, codings := range [][]string{{"gzip"}, {"br"}, {"identity, gzip"}, {"identity", "deflate"}, {"x"}} {
				c := call{method: "POST", path: path, body: "\x1f\x8b\x08\x00", header: http.Header{"Content-Encoding": codings}}
				b.refuses(t, c, 415, "-", "without Content-Encoding")
				if a := b.do(c); a.Header.Get("Accept-Encoding") != "identity" {
					t.Errorf("%s with %q: Accept-Encoding %q, want identity", path, codings, a.Header.Get("Accept-Encoding"))
				}
			}
		}
	})
}

func TestBadPaths(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "ann"})
	const ids = "A-Z a-z 0-9 . _ ~ : @ | + = -"
	b.unchanged(func() {
		for id, text := range map[string]string{
			// The host hands over %2F in a path as %252F; a slash is in no id anyway.
			"x%252Fy": ids, "x%2Fy": ids, "x%2fy%3Az": ids, "x%25": ids, "x%2525": ids, "a%253Ab": ids, "a%3Ab%252Fc": ids,
			"z%20w": ids, "a%00": ids, "a%0A": ids, "a%7F": ids, "%C3%A9": ids, "%ff": ids, "a;b": ids, "a,b": ids, "a!b": ids, "a%3Fb": ids, "a%23b": ids, "a*b": ids,
			".": "must not be . or ..", "..": "must not be . or ..", "%2e": "must not be . or ..", "%2E%2e": "must not be . or ..",
			strings.Repeat("x", 129): "at most 128 characters, has 129", strings.Repeat("%3A", 129): "at most 128 characters, has 129",
		} {
			b.refuses(t, call{method: "GET", path: "/api/users/" + id}, 400, "path:user", text)
			b.refuses(t, call{method: "GET", path: "/api/users/" + id + "/events"}, 400, "path:user", text)
			b.refuses(t, call{method: "DELETE", path: "/api/users/" + id + "/sessions/default"}, 400, "path:user", text)
			b.refuses(t, call{method: "DELETE", path: "/api/users/ann/sessions/" + id}, 400, "path:session", text)
			b.refuses(t, call{method: "GET", path: "/api/events/" + id}, 400, "path:id", text)
			b.refuses(t, call{method: "POST", path: "/api/events/" + id + "/replay"}, 400, "path:id", text)
		}
		b.refuses(t, call{method: "GET", path: "/api/users//events"}, 400, "path:user", "must not be empty")
	})
}

func TestUnknownEvents(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id := presence.EventID("ann", "default", presence.UserOnline, 1)
	b.unchanged(func() {
		for _, id := range []string{
			id, "abc", "-", strings.ToLower(id), id + "A", id[1:], strings.Replace(id, "-", "_", 1),
			strings.Replace(id, "-", "", 1), id[:14] + "0" + id[15:], id + ":r1", id[:13] + "-", "11111111-2222-4333-8444-555555555555",
		} {
			b.refuses(t, call{method: "GET", path: "/api/events/" + id}, 404, "-", "no event with this id")
			b.refuses(t, call{method: "POST", path: "/api/events/" + id + "/replay"}, 404, "-", "no event with this id")
		}
		// One of another form is not looked for.
		b.records.set(func(r *records) { r.readFault = eventlog.ErrUnavailable })
		b.refuses(t, call{method: "GET", path: "/api/events/abc"}, 404, "-", "no event with this id")
		b.get("/api/events/" + id).is(503)
	})
}

func TestBadPaging(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 3 {
		b.beat(object{"user": "ann", "session": fmt.Sprint("s", i)})
		b.beat(object{"user": "bob", "session": fmt.Sprint("s", i)})
	}
	b.relay()
	good := *b.events("/api/users/ann/events?limit=1").Continuation
	flipped := good[:len(good)-1] + "A"
	if flipped == good {
		flipped = good[:len(good)-1] + "B"
	}
	b.unchanged(func() {
		for _, limit := range []string{"", "0", "101", "abc", "-1", "+5", "%2B5", "05", "1.0", "1.5", "1e1", "0x10", "99999999999999999999", "%20", "5%20", "10%00", "1_0", "١"} {
			b.refuses(t, call{method: "GET", path: "/api/users/ann/events?limit=" + limit}, 400, "query:limit", "between 1 and 100")
		}
		for _, token := range []string{
			"x", "1", "2" + good[1:], good[:len(good)-4], good + "AAAA", flipped, "%00", strings.Repeat("A", 4000),
			*b.events("/api/users/bob/events?limit=1").Continuation, eventlog.Continuation("ann", ""), eventlog.Continuation("ann", "x y"),
		} {
			b.refuses(t, call{method: "GET", path: "/api/users/ann/events?continuation=" + token}, 400, "query:continuation", "an earlier answer for the same user")
		}
		for query, at := range map[string][2]string{
			"limit=5&limit=5":                     {"query:limit", "appears twice"},
			"limit=5&limit=":                      {"query:limit", "appears twice"},
			"limit":                               {"query:limit", "between 1 and 100"},
			"continuation=":                       {"query:continuation", "must not be empty"},
			"continuation":                        {"query:continuation", "must not be empty"},
			"continuation=x&continuation=" + good: {"query:continuation", "appears twice"},
		} {
			b.refuses(t, call{method: "GET", path: "/api/users/ann/events?" + query}, 400, at[0], at[1])
		}
		for _, query := range []string{"limit=%zz", "%", "limit=5;continuation=x"} {
			b.refuses(t, call{method: "GET", path: "/api/users/ann/events?" + query}, 400, "query", "percent-encoded")
		}
	})
}

func TestWrongMethods(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, tt := range []struct{ method, path, allow string }{
		{"GET", "/api/heartbeat", "POST"},
		{"PUT", "/api/heartbeats", "POST"},
		{"PATCH", "/api/leave", "POST"},
		{"DELETE", "/api/users/ann", "GET, HEAD"},
		{"POST", "/api/users/ann", "GET, HEAD"},
		{"PUT", "/api/users/query", "POST"},
		{"GET", "/api/users/query", "POST"},
		{"GET", "/api/users/Query?code=x", "POST"},
		{"DELETE", "/API/Users/QUERY", "POST"},
		{"GET", "/api/users/ann/sessions/default", "DELETE"},
		{"POST", "/api/users/a%3Ab/events", "GET, HEAD"},
		{"PUT", "/api/events/x", "GET, HEAD"},
		{"PUT", "/api/Events/x", "GET, HEAD"},
		{"GET", "/api/events/x/replay", "POST"},
		{"POST", "/api/live", "GET, HEAD"},
		{"OPTIONS", "/api/health", "GET, HEAD"},
		{"PROPFIND", "/api/health", "GET, HEAD"},
		{"GET", "/HeartbeatMessages", "POST"},
		{"POST", "/", "GET, HEAD"},
	} {
		a := b.do(call{method: tt.method, path: tt.path})
		if a.Status != 405 || a.Header.Get("Allow") != tt.allow || !strings.Contains(string(a.Body), tt.method) {
			t.Errorf("%s %s: %d, Allow %q, want %q: %s", tt.method, tt.path, a.Status, a.Header.Get("Allow"), tt.allow, a.Body)
		}
	}
	b.method("HEAD", "/api/users/query", 405)
	b.method("HEAD", "/api/nothing", 404)
	b.method("HEAD", "/api/leave", 405)
}

func TestWrongRoutes(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, path := range []string{
		"/api", "/api/", "/api/nothing", "/api/live/", "//api/live", "/api//live", "/API/nothing", "/api/users", "/api/users/", "/api/users/ann/", "/api/users/ann/sessions", "/api/users/ann/sessions/", "/api/users/ann/sessions/a/b", "/api/events/",
		"/api/events/x/replay/", "/api/openapi.yaml", "/heartbeatmessages", "/HeartbeatMessages/x", "/Heartbeat", "/admin/host/status",
		"/api/users/a/b%2Fc", "/api/../api/live", "/%00", "/api/%ff",
	} {
		for _, method := range []string{"GET", "POST", "PROPFIND"} {
			if a := b.do(call{method: method, path: path}); a.Status != 404 {
				t.Errorf("%s %s: %d %s, want 404", method, path, a.Status, a.Body)
			}
		}
	}
}

// TestRecordedRequest sends a request with everything that the host was seen to pass on.
func TestRecordedRequest(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.beat(object{"user": "x|y"})
	header := http.Header{
		"Accept": {"text/plain;q=0.5, */*"}, "Accept-Encoding": {"gzip, br"}, "Authorization": {"Bearer token"}, "Baggage": {"x=y"}, "Cookie": {"a=1; b=2"},
		"If-None-Match": {`"v1"`}, "Origin": {"https://o.example"}, "Range": {"bytes=0-10"}, "Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		"Tracestate": {"k=v"}, "Via": {"1.1 edge"}, "X-Original-Url": {"/api/users/bob"}, "X-Azure-Functions-Invocationid": {"11111111-2222-4333-8444-555555555555"},
		"X-Azure-Functions-Hostversion": {"4.1037.0.0"}, "X-Ms-Client-Principal": {"eyJ9"}, "X-Multi": {"one, two"}, "X-Empty": {""},
		"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Host": {"app.example.net"}, "X-Forwarded-Proto": {"http"},
	}
	a := b.do(call{method: "GET", path: "/api/users/x%7Cy?a=1&a=2&flag&q=%2B+%C3%A9&code=SECRET", header: header})
	a.is(200)
	if a.Header.Get("Content-Encoding") != "" || !strings.Contains(string(a.Body), `"user":"x|y"`) {
		t.Errorf("%v %s", a.Header, a.Body)
	}
	b.refuses(t, call{method: "GET", path: "/api/users/x%252Fy?code=SECRET", header: header}, 400, "path:user", "characters")
	post := http.Header{
		"Content-Type": {"application/json; charset=utf-8"}, "Content-Language": {"en"}, "Content-Disposition": {"inline"},
		"Content-Md5": {"abc"}, "Content-Encoding": {"identity"}, "Expires": {"0"}, "Last-Modified": {"Mon, 01 Jan 2024 00:00:00 GMT"}, "Allow": {"GET"},
	}
	b.do(call{method: "POST", path: "/api/heartbeat?code=SECRET", body: `{"user":"bob" , "meta":{"x":"é"}}`, header: post}).is(200)
	b.refuses(t, call{method: "POST", path: "/api/heartbeat", header: http.Header{"Content-Type": {"application/json"}}}, 400, "", "not JSON")
	if strings.Contains(b.log.String(), "SECRET") {
		t.Error("a key is in the log")
	}
}

// TestRequestsThatAreNotHTTP: what net/http itself refuses never reaches the handler, and the process goes on.
func TestRequestsThatAreNotHTTP(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for _, raw := range []string{
		"\x00\x01\x02\r\n\r\n",
		"GET /api/users/%zz HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /api/users/a\x00b HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET  /api/live HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /api/live HTTP/9.9\r\nHost: x\r\n\r\n",
		"POST /api/heartbeat HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
		"POST /api/heartbeat HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
		"POST /api/heartbeat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"user\":\"cut\"}",
		"POST /api/heartbeat HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
	} {
		conn, err := net.Dial("tcp", b.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, raw); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%q: %v", raw, err)
		} else if response.StatusCode < 400 || response.StatusCode >= 500 && response.StatusCode != 505 {
			t.Errorf("%q: %s", raw, response.Status)
		}
		_ = conn.Close()
	}
	if u := b.user("cut"); u.Status != "offline" {
		t.Errorf("a cut body was applied: %+v", u)
	}
}
