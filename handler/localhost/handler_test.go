package localhost

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// The test binary is its own handler: TestMain becomes one when the host starts it. It shows every request to the
// test over HTTP and does what the test answers.
const scriptURL = "TEST_SCRIPT_URL"

// call is a request as the handler received it.
type call struct {
	Method, URI, Host string
	Header            http.Header
	Encoding          []string
	Length            int64
	Body              []byte
	PID               int
	Environ           []string
	Dir               string
}

// reply is what the handler shall do.
type reply struct {
	Status      int
	ContentType *string
	Body        string
	Header      http.Header
	Drop        bool // break the connection
	Exit        *int // end the process with this code
	Stream      bool // send an event, then hold until the client goes, then call the script again with method GONE
}

func TestMain(m *testing.M) {
	if os.Getenv(scriptURL) != "" && os.Getenv("FUNCTIONS_CUSTOMHANDLER_PORT") != "" {
		runTestHandler()
		return
	}
	os.Exit(m.Run())
}

func runTestHandler() {
	// A handler whose host is gone ends itself, as the real one does.
	parent := os.Getppid()
	go func() {
		for os.Getppid() == parent {
			time.Sleep(50 * time.Millisecond)
		}
		os.Exit(1)
	}()
	fmt.Println(`{"msg":"handler started"}`)
	if code := os.Getenv("TEST_EXIT_AT_START"); code != "" {
		os.Exit(atoi(code))
	}
	err := http.ListenAndServe("127.0.0.1:"+os.Getenv("FUNCTIONS_CUSTOMHANDLER_PORT"), http.HandlerFunc(serveTestHandler))
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func atoi(s string) (n int) {
	_, _ = fmt.Sscan(s, &n)
	return n
}

func serveTestHandler(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/" {
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	dir, _ := os.Getwd()
	c := call{
		Method: r.Method, URI: r.RequestURI, Host: r.Host, Header: r.Header, Encoding: r.TransferEncoding,
		Length: r.ContentLength, Body: body, PID: os.Getpid(), Environ: os.Environ(), Dir: dir,
	}
	do := ask(c)
	switch {
	case do.Exit != nil:
		os.Exit(*do.Exit)
	case do.Drop:
		panic(http.ErrAbortHandler)
	case do.Stream:
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprint(w, "data: first\n\n")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		c.Method = "GONE"
		ask(c)
		return
	}
	for name, values := range do.Header {
		w.Header()[name] = values
	}
	w.Header()["Content-Type"] = nil // no sniffing
	if do.ContentType != nil {
		w.Header().Set("Content-Type", *do.ContentType)
	}
	w.WriteHeader(do.Status)
	_, _ = io.WriteString(w, do.Body)
}

func ask(c call) (do reply) {
	data, _ := json.Marshal(c)
	resp, err := http.Post(os.Getenv(scriptURL), "application/json", bytes.NewReader(data))
	if err != nil {
		panic(http.ErrAbortHandler) // the test is over
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&do); err != nil {
		panic(http.ErrAbortHandler)
	}
	return do
}

// testApp is a function app and what its handler does.
type testApp struct {
	functions map[string]string // name -> function.json
	host      map[string]any    // laid over host.json
	environ   []string
	options   Options
	script    func(call) reply
}

// running is a host that runs.
type running struct {
	*Host
	Status
	ready  chan Status
	stop   context.CancelFunc
	ended  chan struct{}
	err    error
	stdout *lines
	log    *lines
}

// lines is an io.Writer that may be read meanwhile.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var jsonType = "application/json"

// ok is the reply of a trigger function that succeeds, and of an HTTP function.
var ok = reply{Status: 200, ContentType: &jsonType, Body: "{}"}

const httpFunction = `{"bindings":[{"type":"httpTrigger","direction":"in","name":"req","route":%q},{"type":"http","direction":"out","name":"res"}]}`

func queueFunction(queue, cardinality, dataType string) string {
	return fmt.Sprintf(`{"bindings":[{"type":"serviceBusTrigger","direction":"in","name":"msg","queueName":%q,"connection":"C","cardinality":%q,"dataType":%q}]}`,
		queue, cardinality, dataType)
}

// stage writes the package of app and returns its folder.
func (app testApp) stage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	host := map[string]any{
		"version": "2.0",
		"customHandler": map[string]any{
			"description":               map[string]any{"defaultExecutablePath": executable},
			"enableProxyingHttpRequest": true,
		},
	}
	for name, value := range app.host {
		host[name] = value
	}
	write(t, filepath.Join(dir, "host.json"), string(marshal(host)))
	for name, text := range app.functions {
		write(t, filepath.Join(dir, name, "function.json"), text)
	}
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// launch runs app and does not wait for anything.
func launch(t *testing.T, app testApp) *running {
	t.Helper()
	script := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var c call
		if err := json.NewDecoder(r.Body).Decode(&c); err != nil {
			t.Errorf("call: %v", err)
		}
		_, _ = w.Write(marshal(app.script(c)))
	}))
	t.Cleanup(script.Close)
	r := &running{ready: make(chan Status, 100), ended: make(chan struct{}), stdout: &lines{}, log: &lines{}}
	o := app.options
	if o.PackageDir == "" {
		o.PackageDir = app.stage(t)
	}
	if o.DataDir == "" {
		o.DataDir = t.TempDir()
	}
	if o.Redis == "" {
		o.Redis = RedisNone
	}
	o.Environ = append([]string{scriptURL + "=" + script.URL, "PATH=" + os.Getenv("PATH")}, app.environ...)
	o.Stdout, o.HandlerStdout, o.HandlerStderr = r.stdout, r.stdout, r.stdout
	o.Log = r.log.logger()
	o.OnReady = func(s Status) { r.ready <- s }
	r.Host = New(o)
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	go func() {
		defer close(r.ended)
		r.err = r.Run(ctx)
	}()
	t.Cleanup(func() {
		r.stop()
		<-r.ended
		if t.Failed() {
			t.Logf("log:\n%s\noutput:\n%s", r.log, r.stdout)
		}
	})
	return r
}

// start runs app and waits until it is ready.
func start(t *testing.T, app testApp) *running {
	t.Helper()
	r := launch(t, app)
	r.Status = r.waitReady(t)
	return r
}

func (r *running) waitReady(t *testing.T) Status {
	t.Helper()
	select {
	case s := <-r.ready:
		return s
	case <-r.ended:
		t.Fatalf("the host ended: %v", r.err)
	case <-time.After(30 * time.Second):
		t.Fatalf("not ready; log:\n%s", r.log)
	}
	return Status{}
}

// end stops the host and returns what Run returned.
func (r *running) end(t *testing.T) error {
	t.Helper()
	r.stop()
	return r.result(t)
}

// result waits until Run has returned.
func (r *running) result(t *testing.T) error {
	t.Helper()
	next(t, r.ended)
	return r.err
}

// next returns what comes out of c.
func next[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came")
	}
	panic("unreachable")
}

// request sends a request and returns the answer and its body.
func request(t *testing.T, method, base, target string, header http.Header, body io.Reader) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, base+target, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	if header.Get("User-Agent") == "" {
		req.Header.Set("User-Agent", "") // not that of Go
	}
	if host := header.Get("Host"); host != "" {
		req.Host = host
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

func readTestdata(t *testing.T, name string, v any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err == nil {
		err = json.Unmarshal(data, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func busyPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().(*net.TCPAddr).Port
}
