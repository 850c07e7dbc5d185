package localhost

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

func exit(code int) reply { return reply{Exit: &code} }

// exitApp has an HTTP function whose handler exits with the code in the query, once per request.
func exitApp(codes func(c call) reply) testApp {
	return testApp{functions: map[string]string{"F": fn(httpFunction, "f")}, script: codes}
}

func TestEnvironmentOfTheHandler(t *testing.T) {
	t.Parallel()
	calls := make(chan call, 1)
	app := exitApp(func(c call) reply { calls <- c; return ok })
	app.environ = []string{"SETTING=environment", "REDIS_URL=redis://elsewhere:6379", "FUNCTIONS_WORKER_RUNTIME=node"}
	app.options.Redis = RedisAuto
	app.options.DataDir = t.TempDir()
	app.options.PackageDir = app.stage(t)
	write(t, app.options.PackageDir+"/local.settings.json", `{"Values":{"SETTING":"file","FROM_FILE":"yes"}}`)
	r := start(t, app)
	request(t, "GET", r.URL, "/api/f", nil, nil)
	c := next(t, calls)
	port := strings.TrimPrefix(r.HandlerURL, "http://127.0.0.1:")
	for _, want := range []string{
		"FUNCTIONS_CUSTOMHANDLER_PORT=" + port, "FUNCTIONS_HTTPWORKER_PORT=" + port, "FUNCTIONS_APP_ROOT_PATH=" + app.options.PackageDir,
		"FUNCTIONS_WORKER_RUNTIME=custom", "LOCAL_QUEUE_URL=" + r.URL + "/local/queues", "DATA_DIR=" + app.options.DataDir,
		"SETTING=environment", "FROM_FILE=yes", "REDIS_URL=redis://elsewhere:6379",
	} {
		if !slices.Contains(c.Environ, want) {
			t.Errorf("%s is not in the environment", want)
		}
	}
	if !slices.ContainsFunc(c.Environ, func(e string) bool { return strings.HasPrefix(e, "FUNCTIONS_CUSTOMHANDLER_WORKER_ID=") }) {
		t.Error("no worker id")
	}
	if dir, _ := os.Stat(c.Dir); dir == nil || c.Dir != app.options.PackageDir {
		t.Errorf("folder %s, want that of the package", c.Dir)
	}
	if !strings.Contains(r.stdout.String(), `{"msg":"handler started"}`+"\n") {
		t.Errorf("the handler's line is not in the output:\n%s", r.stdout)
	}
	if r.RedisURL != "" || r.HandlerPID != c.PID || r.HostPID != os.Getpid() {
		t.Errorf("status %+v", r.Status)
	}
}

func TestCrashesAreCountedAndTheThirdStopsTheHost(t *testing.T) {
	t.Parallel()
	r := start(t, exitApp(func(call) reply { return exit(1) }))
	for range 2 {
		request(t, "POST", r.URL, "/api/f", nil, strings.NewReader("x"))
		if again := r.waitReady(t); again.HandlerURL != r.HandlerURL || again.HandlerPID == r.HandlerPID {
			t.Errorf("restarted as %+v, was %+v", again, r.Status)
		}
	}
	_, _ = http.Post(r.URL+"/api/f", "", strings.NewReader("x")) // the host may go first
	if err := r.result(t); err == nil || !strings.Contains(err.Error(), "crashed 3 times") {
		t.Errorf("the host ended with %v", err)
	}
}

func TestOneRequestWithoutABodyCanStopTheHost(t *testing.T) {
	t.Parallel()
	r := start(t, exitApp(func(call) reply { return exit(1) }))
	if resp, err := http.Get(r.URL + "/api/f"); err == nil { // sent again to each new process
		resp.Body.Close()
	}
	if err := r.result(t); err == nil || !strings.Contains(err.Error(), "crashed 3 times") {
		t.Errorf("the host ended with %v", err)
	}
}

func TestExit200IsNotCounted(t *testing.T) {
	t.Parallel()
	var exits atomic.Int32
	r := start(t, exitApp(func(call) reply {
		if exits.Add(1) <= 4 {
			return exit(200)
		}
		return ok
	}))
	// Each exit is answered by a new process, to which the request is sent again.
	if resp, _ := request(t, "GET", r.URL, "/api/f", nil, nil); resp.StatusCode != 200 {
		t.Errorf("status %d", resp.StatusCode)
	}
	if err := r.end(t); err != nil {
		t.Errorf("the host ended with %v", err)
	}
}

func TestExit0IsNeverStartedAgain(t *testing.T) {
	t.Parallel()
	app := exitApp(func(call) reply { return exit(0) })
	app.functions["Q"] = queueFunction("work", "many", "string")
	r := start(t, app)
	for range 2 {
		if resp, body := request(t, "GET", r.URL, "/api/f", nil, nil); resp.StatusCode != 500 || body != "" {
			t.Errorf("%d %q, want an empty 500", resp.StatusCode, body)
		}
	}
	// Queues fill up without losing deliveries.
	if err := r.broker.enqueue(t.Context(), "work", []message{{ID: "m"}}); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); err != nil {
		t.Errorf("the host ended with %v", err)
	}
}

func TestHandlerThatCannotStart(t *testing.T) {
	t.Parallel()
	app := exitApp(func(call) reply { return ok })
	app.environ = []string{"TEST_EXIT_AT_START=3"}
	if err := launch(t, app).result(t); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("the host ended with %v", err)
	}
	app.options.PackageDir = app.stage(t)
	write(t, app.options.PackageDir+"/handler", "") // without the permission to execute
	write(t, app.options.PackageDir+"/host.json", `{"customHandler":{"description":{"defaultExecutablePath":"handler"}}}`)
	if err := launch(t, app).result(t); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("the host ended with %v", err)
	}
}
