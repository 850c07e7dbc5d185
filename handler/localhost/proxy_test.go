package localhost

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
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
		"anonymous":      {"GET", "/api/open", nil, 418, "handler"},
		"other method":   {"POST", "/api/open", nil, 404, ""},
		"other route":    {"GET", "/api/nowhere", key, 404, ""},
		"function name":  {"POST", "/Open", key, 404, ""},
		"disabled":       {"GET", "/api/off", key, 404, ""},
		"in error":       {"GET", "/api/bad", key, 404, ""},
		"not ASCII":      {"GET", "/api/open", http.Header{"X-Name": {"caf\xc3\xa9"}}, 500, ""},
		"root":           {"GET", "/", nil, 404, ""},
		"broker unknown": {"GET", "/local/queues/", nil, 404, "404 page not found\n"},
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
