package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"userconnectivity/handler/localhost"
)

// binary is the command, built once for all tests.
var binary string

// TestMain becomes the handler when the host starts the test binary as one.
func TestMain(m *testing.M) {
	if port := os.Getenv("FUNCTIONS_CUSTOMHANDLER_PORT"); port != "" {
		runHandler(port)
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "localhost")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "localhost")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// runHandler answers every request, and /api/hang never.
func runHandler(port string) {
	fmt.Println(`{"msg":"handler started"}`)
	err := http.ListenAndServe("127.0.0.1:"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/api/hang" {
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	}))
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// host is the running command.
type host struct {
	localhost.Status
	cmd           *exec.Cmd
	output        *bytes.Buffer // safe to read once the command has ended
	ended         chan struct{}
	dataDir, file string
}

// launch runs the command on a package of its own.
func launch(t *testing.T, args ...string) *host {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const function = `{"bindings":[{"type":"httpTrigger","name":"req","route":%q},{"type":"http","name":"res"}]}`
	for name, text := range map[string]string{
		"host.json":          fmt.Sprintf(`{"customHandler":{"description":{"defaultExecutablePath":%q},"enableProxyingHttpRequest":true}}`, self),
		"Beat/function.json": fmt.Sprintf(function, "heartbeat"),
		"Hang/function.json": fmt.Sprintf(function, "hang"),
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	h := &host{dataDir: filepath.Join(t.TempDir(), "data"), file: filepath.Join(t.TempDir(), "ready.json"), output: &bytes.Buffer{}, ended: make(chan struct{})}
	h.cmd = exec.Command(binary, append([]string{"--package", dir, "--data-dir", h.dataDir, "--ready-file", h.file, "--redis", "server"}, args...)...)
	h.cmd.Env = append(os.Environ(), "PORT=0")
	h.cmd.Stdout, h.cmd.Stderr = h.output, h.output
	h.cmd.WaitDelay = 10 * time.Second
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(h.ended)
		_ = h.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = h.cmd.Process.Kill()
		<-h.ended
		if t.Failed() {
			t.Logf("output:\n%s", h.output)
		}
	})
	return h
}

// start runs the command and waits until it is ready.
func start(t *testing.T, args ...string) *host {
	t.Helper()
	h := launch(t, args...)
	until(t, "the host is ready", func() bool {
		data, err := os.ReadFile(h.file)
		return err == nil && json.Unmarshal(data, &h.Status) == nil
	})
	return h
}

// wait waits for the end of the command and returns its exit code.
func (h *host) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-h.ended:
		return h.cmd.ProcessState.ExitCode()
	case <-time.After(30 * time.Second):
		t.Fatal("the host does not end")
		return 0
	}
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// alive reports whether a process runs; one that nobody has waited for yet does not.
func alive(pid int) bool {
	if runtime.GOOS == "linux" {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			return false
		}
		_, after, _ := bytes.Cut(stat, []byte(") "))
		return !bytes.HasPrefix(after, []byte("Z"))
	}
	p, err := os.FindProcess(pid)
	return err == nil && p.Signal(syscall.Signal(0)) == nil
}

func (h *host) wantNoProcess(t *testing.T) {
	t.Helper()
	until(t, "no process is left", func() bool { return !alive(h.HandlerPID) && !alive(h.RedisPID) })
}

func TestStopsInOrder(t *testing.T) {
	t.Parallel()
	for _, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			h := start(t)
			resp, err := http.Get(h.URL + "/api/heartbeat")
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK || !alive(h.HandlerPID) || !alive(h.RedisPID) {
				t.Fatalf("status %d of %+v", resp.StatusCode, h.Status)
			}
			if err := h.cmd.Process.Signal(s); err != nil {
				t.Fatal(err)
			}
			if code := h.wait(t); code != 0 {
				t.Errorf("exit code %d", code)
			}
			if alive(h.HandlerPID) || alive(h.RedisPID) {
				t.Error("a process is left behind")
			}
			if out := h.output.String(); !strings.Contains(out, "stand-in for the Azure Functions host") || !strings.Contains(out, `{"msg":"handler started"}`) {
				t.Errorf("output:\n%s", out)
			}
		})
	}
}

func TestNoProcessIsLeftBehindByAKilledHost(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Fatal("only Linux ends the children of a killed host")
	}
	h := start(t)
	if err := h.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	h.wait(t)
	h.wantNoProcess(t)
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	t.Parallel()
	h := start(t)
	resp, err := http.Get(h.URL + "/api/hang") // holds up the first signal
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for range 2 {
		if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		until(t, "the host stops", func() bool {
			resp, err := http.Get(h.URL + "/api/heartbeat")
			if err == nil {
				resp.Body.Close()
			}
			return err != nil || resp.StatusCode == http.StatusServiceUnavailable
		})
	}
	if code := h.wait(t); code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	h.wantNoProcess(t)
}

func TestQuietHandler(t *testing.T) {
	t.Parallel()
	h := start(t, "--quiet-handler")
	if err := h.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	h.wait(t)
	const line = `{"msg":"handler started"}` + "\n"
	if data, err := os.ReadFile(filepath.Join(h.dataDir, "handler.log")); err != nil || string(data) != line {
		t.Errorf("handler.log: %q, %v", data, err)
	}
	if strings.Contains(h.output.String(), line) {
		t.Error("the handler's line is in the output too")
	}
}

func TestWrongUse(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) // after the subtests
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"port in use":       {[]string{"--port", strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}, "PORT="},
		"no package":        {[]string{"--package", t.TempDir()}, "staged"},
		"unknown flag":      {[]string{"--nothing"}, "nothing"},
		"argument":          {[]string{"dist"}, "unexpected argument"},
		"notifications":     {[]string{"--redis-notifications", "maybe"}, "on or off"},
		"redis":             {[]string{"--redis", "maybe"}, "auto, server, mini or none"},
		"help names a flag": {[]string{"--help"}, "-ready-file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := launch(t, test.args...)
			wantCode := 1
			if name == "help names a flag" {
				wantCode = 0
			}
			if code := h.wait(t); code != wantCode || !strings.Contains(h.output.String(), test.want) {
				t.Errorf("exit code %d, output:\n%s", code, h.output)
			}
		})
	}
}
