package localhost

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestProxiedRequestsEqualTheRecordedOnes sends what a client had sent when the requests were recorded.
func TestProxiedRequestsEqualTheRecordedOnes(t *testing.T) {
	t.Parallel()
	calls := make(chan call, 1)
	r := start(t, testApp{
		functions: map[string]string{"User": fn(httpFunction, "users/{user}/{*rest}"), "Post": fn(httpFunction, "users/{user}")},
		script:    func(c call) reply { calls <- c; return ok },
	})
	var all map[string]recordedProxied
	readTestdata(t, "proxied.json", &all)
	setByHost := []string{"Host", headerInvocationID, headerHostVersion, headerMSID, "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Content-Length"}
	for name, want := range all {
		header := http.Header{}
		for _, line := range want.Headers {
			key, value, _ := strings.Cut(line, ":")
			header.Set(key, strings.TrimSpace(value))
		}
		sent := header.Clone()
		for _, key := range setByHost {
			sent.Set(key, "forged")
		}
		sent.Del("Content-Length")
		sent.Set("Host", "app.example.net")
		sent.Set("Forwarded", "for=1.2.3.4")
		sent.Set("Te", "trailers")
		parts := strings.Fields(want.Request)
		var body io.Reader
		if want.Body != "" {
			body = strings.NewReader(want.Body)
		}
		resp, _ := request(t, parts[0], r.URL, strings.ReplaceAll(parts[1], "%252F", "%2F"), sent, body)
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%s: status %d", name, resp.StatusCode)
		}
		got := next(t, calls)
		if got.Method != parts[0] || got.URI != parts[1] || string(got.Body) != want.Body {
			t.Errorf("%s: %s %s %q, want %s %q", name, got.Method, got.URI, got.Body, want.Request, want.Body)
		}
		if "http://"+got.Host != r.HandlerURL {
			t.Errorf("%s: host %s, want that of the handler", name, got.Host)
		}
		id := got.Header.Get(headerInvocationID)
		if len(id) != 36 || got.Header.Get(headerMSID) != id {
			t.Errorf("%s: invocation ids %q and %q", name, id, got.Header.Get(headerMSID))
		}
		for _, h := range []http.Header{header, got.Header} {
			h.Del("Host")
			h.Del("Content-Length") // the recorded one is in bytes of another encoding
			h.Set(headerInvocationID, "")
			h.Set(headerMSID, "")
		}
		if diff := cmp.Diff(header, got.Header); diff != "" {
			t.Errorf("%s: headers differ (-recorded +ours):\n%s", name, diff)
		}
	}
}

// recordedProxied is a recorded request whose body may be anything.
type recordedProxied struct {
	Request string
	Headers []string
	Body    string
}

func TestHTTPAnswersOfTheHostItself(t *testing.T) {
	t.Parallel()
	r := start(t, testApp{
		functions: map[string]string{
			"Key":  `{"bindings":[{"type":"httpTrigger","name":"req","methods":["get"],"route":"key"},{"type":"http","name":"res"}]}`,
			"Open": `{"bindings":[{"type":"httpTrigger","name":"req","methods":["get"],"route":"open","authLevel":"anonymous"},{"type":"http","name":"res"}]}`,
			"Off":  fn(httpFunction, "off"),
			"Bad":  `{"bindings":[{"type":"httpTrigger","name":"req","route":"bad"},{"type":"http","name":"res"},{"type":"queue","name":"out"}]}`,
		},
		environ: []string{"AzureWebJobs_Off_Disabled=true"},
		options: Options{AuthKey: "secret"},
		script:  func(c call) reply { return reply{Status: 418, Body: "handler"} },
	})
	key := http.Header{"X-Functions-Key": {"secret"}}
	tests := map[string]struct {
		method, target string
		header         http.Header
		status         int
		body           string
	}{
		"no key":         {"GET", "/api/key", nil, 401, ""},
		"wrong key":      {"GET", "/api/key", http.Header{"X-Functions-Key": {"x"}}, 401, ""},
		"key in header":  {"GET", "/api/key", key, 418, "handler"},
		"key in query":   {"GET", "/api/key?code=secret", nil, 418, "handler"},
		"CODE":           {"GET", "/api/key?a=1&CODE=secret", nil, 418, "handler"},
		"escaped Code":   {"GET", "/api/key?C%6Fde=secre%74", nil, 418, "handler"},
		"first code":     {"GET", "/api/key?code=x&Code=secret", nil, 401, ""},
		"semicolon":      {"GET", "/api/key?a;b&code=secret", nil, 418, "handler"},
		"empty header":   {"GET", "/api/key?code=secret", http.Header{"X-Functions-Key": {""}}, 401, ""},
		"two slashes":    {"GET", "//api/open", key, 404, ""},
		"slashes inside": {"GET", "/api//open", key, 404, ""},
		"slashes behind": {"GET", "/api/open//", key, 404, ""},
		"slash behind":   {"GET", "/api/open/", key, 418, "handler"},
		"admin":          {"GET", "/admin", key, 403, ""},
		"below admin":    {"POST", "/ADMIN/host/status", key, 403, ""},
		"runtime":        {"GET", "/runtime/webhooks/x", key, 403, ""},
		"administrator":  {"GET", "/administrator", key, 404, ""},
		"anonymous":      {"GET", "/api/open", nil, 418, "handler"},
		"other method":   {"POST", "/api/open", nil, 404, ""},
		"other route":    {"GET", "/api/nowhere", key, 404, ""},
		"function name":  {"POST", "/Open", key, 404, ""},
		"disabled":       {"GET", "/api/off", key, 404, ""},
		"in error":       {"GET", "/api/bad", key, 404, ""},
		"not ASCII":      {"GET", "/api/open", http.Header{"X-Name": {"caf\xc3\xa9"}}, 500, ""},
		"root":           {"GET", "/", nil, 200, homepage},
		"root by POST":   {"POST", "/", nil, 200, homepage},
		"queues":         {"GET", "/local/queues", nil, 200, `{"queues":[]}`},
		"beside queues":  {"GET", "/local/queue", nil, 404, ""},
		"header of 32 K": {"GET", "/api/open", http.Header{"X-Long": {strings.Repeat("x", 32<<10-200)}}, 418, "handler"},
		"header of more": {"GET", "/api/open", http.Header{"X-Long": {strings.Repeat("x", 32<<10)}}, 431, ""},
		"headers":        {"GET", "/api/open", http.Header{"X-Many": slices.Repeat([]string{"x"}, 101)}, 431, ""},
		"long path":      {"GET", "/api/open?q=" + strings.Repeat("x", 8<<10), nil, 414, ""},
	}
	for name, test := range tests {
		resp, body := request(t, test.method, r.URL, test.target, test.header, nil)
		if resp.StatusCode != test.status || body != test.body {
			t.Errorf("%s: %d %q, want %d %q", name, resp.StatusCode, body, test.status, test.body)
		}
	}
	if out := r.stdout.String(); !strings.Contains(out, "Bad: IN ERROR") || !strings.Contains(out, "Off: disabled") ||
		!strings.Contains(out, "Key: [GET] "+r.URL+"/api/key\n") || strings.Contains(out, "secret") {
		t.Errorf("output:\n%s", out)
	}
}

// exchangeRaw sends text over a connection of its own and returns the answers to it, as status, body and Content-Type.
func exchangeRaw(t *testing.T, base, text string, answers int) (all []string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(conn)
	for range answers {
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatalf("%.200q: %v", text, err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, fmt.Sprint(resp.StatusCode, " ", string(body)))
	}
	return all
}

// TestRequestsThatGoRefuses are those that Kestrel takes in another way than Go's web server.
func TestRequestsThatGoRefuses(t *testing.T) {
	t.Parallel()
	r := start(t, testApp{
		functions: map[string]string{"User": fn(httpFunction, "users/{user}")},
		script:    func(c call) reply { return reply{Status: 200, Body: c.URI + " " + string(c.Body)} },
	})
	const head = " HTTP/1.1\r\nHost: x\r\n"
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"no escape":           {"GET /api/users/%zz?q=%zz" + head + "\r\n", []string{"200 /api/users/%25zz?q=%zz "}},
		"half an escape":      {"GET /api/users/%4" + head + "\r\n", []string{"200 /api/users/%254 "}},
		"percent at the end":  {"GET /api/users/100%" + head + "\r\n", []string{"200 /api/users/100%25 "}},
		"over and over":       {"GET /api/users/%%41%" + head + "\r\n", []string{"200 /api/users/%25A%25 "}},
		"no UTF-8":            {"GET /api/users/%ff%41" + head + "\r\n", []string{"200 /api/users/%25ffA "}},
		"a byte over 127":     {"GET /api/users/caf\xc3\xa9" + head + "\r\n", []string{"400 "}},
		"... in the query":    {"GET /api/users/a?q=\xe9" + head + "\r\n", []string{"400 "}},
		"HTTP/1.0":            {"GET /api/users/a HTTP/1.0\r\n\r\n", []string{"500 "}},
		"HTTP/1.0 with host":  {"GET /api/users/a HTTP/1.0\r\nHost: x\r\n\r\n", []string{"200 /api/users/a "}},
		"HTTP/1.0, no route":  {"GET /api/nothing HTTP/1.0\r\n\r\n", []string{"404 "}},
		"a body as it is":     {"POST /api/users/%zz" + head + "Content-Length: 4\r\n\r\n%zz\n", []string{"200 /api/users/%25zz %zz\n"}},
		"one after the other": {"POST /api/users/a" + head + "Content-Length: 4\r\n\r\n%zz\nPOST /api/users/b" + head + "Content-Length: 4\r\n\r\n%yy\n", []string{"200 /api/users/a %zz\n", "200 /api/users/b %yy\n"}},
		"NUL":                 {"GET /api/users/%00" + head + "\r\n", []string{"400 "}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := exchangeRaw(t, r.URL, test.text, len(test.want)); !slices.Equal(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// TestRequestLineInPieces sends two requests on one connection, each piece in a packet of its own.
func TestRequestLineInPieces(t *testing.T) {
	t.Parallel()
	r := start(t, testApp{
		functions: map[string]string{"User": fn(httpFunction, "users/{user}")},
		script:    func(c call) reply { return reply{Status: 200, Body: c.URI} },
	})
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	for range 2 {
		for piece := range strings.SplitAfterSeq("GET /api/users/%|z?q|=1 HTTP/1.1\r|\nHost: |x\r\n\r\n", "|") {
			if _, err := io.WriteString(conn, strings.TrimSuffix(piece, "|")); err != nil {
				t.Fatal(err)
			}
		}
		resp, err := http.ReadResponse(in, nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || string(body) != "/api/users/%25z?q=1" {
			t.Errorf("%d %q, %v", resp.StatusCode, body, err)
		}
	}
}

func TestHomepageIsSwitchedOff(t *testing.T) {
	t.Parallel()
	r := start(t, testApp{functions: map[string]string{}, environ: []string{"AzureWebJobsDisableHomepage=true"}, script: func(call) reply { return ok }})
	if resp, body := request(t, "GET", r.URL, "/", nil, nil); resp.StatusCode != http.StatusNoContent || body != "" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
}

// TestBodyArrivesWhole: the handler sees a request with a length once all of its body is there.
func TestBodyArrivesWhole(t *testing.T) {
	t.Parallel()
	calls := make(chan call, 2)
	r := start(t, testApp{
		functions: map[string]string{"F": fn(httpFunction, "f")},
		script:    func(c call) reply { calls <- c; return ok },
	})
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /api/f HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nha"); err != nil {
		t.Fatal(err)
	}
	request(t, "GET", r.URL, "/api/f", nil, nil)
	if c := next(t, calls); c.Method != "GET" {
		t.Errorf("the handler saw %s first", c.Method)
	}
	if _, err := io.WriteString(conn, "lf"); err != nil {
		t.Fatal(err)
	}
	if c := next(t, calls); string(c.Body) != "half" || c.Length != 4 {
		t.Errorf("%q of %d bytes", c.Body, c.Length)
	}
}

// TestRequestThatTakesTooLong: the host kills the handler, and its other requests with it.
func TestRequestThatTakesTooLong(t *testing.T) {
	t.Parallel()
	r := start(t, testApp{
		functions: map[string]string{"F": fn(httpFunction, "f")},
		host:      map[string]any{"functionTimeout": "00:00:00.3"},
		script:    func(c call) reply { return reply{Stream: c.Method != "GONE"} },
	})
	resp, err := http.Post(r.URL+"/api/f", "text/plain", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if again := r.waitReady(t); again.HandlerPID == r.HandlerPID {
		t.Error("the handler was not started again")
	}
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the answer ended as if it were complete")
	}
}

func TestBodylessRequestIsSentAgain(t *testing.T) {
	t.Parallel()
	var tries atomic.Int32
	r := start(t, testApp{
		functions: map[string]string{"F": fn(httpFunction, "f"), "G": fn(httpFunction, "always")},
		script: func(c call) reply {
			if c.URI == "/api/always" || tries.Add(1) < 4 {
				return reply{Drop: true}
			}
			return ok
		},
	})
	if resp, _ := request(t, "GET", r.URL, "/api/f", nil, nil); resp.StatusCode != 200 || tries.Load() != 4 {
		t.Errorf("GET: status %d after %d tries, want 200 after 4", resp.StatusCode, tries.Load())
	}
	tries.Store(0)
	if resp, _ := request(t, "POST", r.URL, "/api/f", nil, strings.NewReader("x")); resp.StatusCode != 500 || tries.Load() != 1 {
		t.Errorf("POST with a body: status %d after %d tries, want 500 after 1", resp.StatusCode, tries.Load())
	}
	if resp, body := request(t, "DELETE", r.URL, "/api/always", nil, nil); resp.StatusCode != 500 || body != "" {
		t.Errorf("always dropped: %d %q, want an empty 500", resp.StatusCode, body)
	}
}

func TestBodies(t *testing.T) {
	t.Parallel()
	calls := make(chan call, 1)
	r := start(t, testApp{
		functions: map[string]string{"F": fn(httpFunction, "f")},
		script:    func(c call) reply { calls <- c; return ok },
	})
	resp, _ := request(t, "POST", r.URL, "/api/f", nil, io.MultiReader(strings.NewReader("chunked "), strings.NewReader("upload")))
	if c := next(t, calls); resp.StatusCode != 200 || string(c.Body) != "chunked upload" || len(c.Encoding) != 1 {
		t.Errorf("chunked: %d %q %v", resp.StatusCode, c.Body, c.Encoding)
	}
	// A length over the limit is refused before anything is read.
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /api/f HTTP/1.1\r\nHost: x\r\nContent-Length: 104857601\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusInternalServerError {
		t.Errorf("too large: status %d, want 500", answer.StatusCode)
	}
}

func TestEventStreams(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{}, 2)
	r := start(t, testApp{
		functions: map[string]string{"F": fn(httpFunction, "stream")},
		script: func(c call) reply {
			if c.Method == "GONE" {
				gone <- struct{}{}
			}
			return reply{Stream: true}
		},
	})
	open := func(ctx context.Context) *bufio.Reader {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL+"/api/stream", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { resp.Body.Close() })
		body := bufio.NewReader(resp.Body)
		if line, err := body.ReadString('\n'); err != nil || line != "data: first\n" {
			t.Fatalf("first event: %q, %v", line, err)
		}
		return body
	}
	ctx, leave := context.WithCancel(t.Context())
	open(ctx)
	leave()
	next(t, gone) // the handler learns that the client has gone
	body := open(t.Context())
	before := time.Now()
	if err := r.end(t); err != nil {
		t.Errorf("end: %v", err)
	}
	if took := time.Since(before); took >= stopGrace {
		t.Errorf("the open stream held the host up for %v", took)
	}
	if _, err := io.ReadAll(body); err == nil {
		t.Error("the stream ended as if it were complete")
	}
}

// TestSlowBodies: a body that comes slower than Kestrel takes one, or that cannot be read, is the client's
// fault, and does not hold its request for ever.
func TestSlowBodies(t *testing.T) {
	t.Parallel()
	r := start(t, testApp{
		functions: map[string]string{"F": fn(httpFunction, "f")},
		script:    func(call) reply { return ok },
	})
	const head, chunked = "POST /api/f HTTP/1.1\r\nHost: x\r\n", "Transfer-Encoding: chunked\r\n\r\n"
	for name, test := range map[string]struct{ text, want string }{
		"stalls":            {head + "Content-Length: 4\r\n\r\nha", "408 "},
		"stalls in chunks":  {head + chunked + "2\r\nha\r\n", "408 "},
		"stalls in a chunk": {head + chunked + "4\r\nha", "408 "},
		"no chunk":          {head + chunked + "zz\r\nha\r\n", "400 "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := exchangeRaw(t, r.URL, test.text, 1); got[0] != test.want {
				t.Errorf("%q, want %q", got[0], test.want)
			}
		})
	}
}
