package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

const (
	// startTimeout bounds the start of a process.
	startTimeout = 30 * time.Second
	// probePause is how long to wait after an attempt that was not answered.
	probePause = 100 * time.Microsecond
)

// process is a handler, or a server in its place.
type process struct {
	cmd    *exec.Cmd
	addr   string
	stdin  io.Closer // a server in its place ends when it is closed
	exited chan error
	end    func() // what ends with the process, nil for nothing
	// first is how long it took from the start to the first answer.
	first time.Duration
}

// startProcess starts a binary that listens on FUNCTIONS_CUSTOMHANDLER_PORT, and waits until GET /api/live is
// answered. Every probe has a connection of its own, as the host's.
func startProcess(ctx context.Context, env []string, binary string, args ...string) (*process, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	p := &process{addr: "127.0.0.1:" + port, exited: make(chan error, 1)}
	p.cmd = exec.Command(binary, args...)
	p.cmd.Stderr = os.Stderr
	p.cmd.Env = append(append(os.Environ(), "FUNCTIONS_CUSTOMHANDLER_PORT="+port), env...)
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	began := time.Now()
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", binary, err)
	}
	go func() { p.exited <- p.cmd.Wait() }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		if answered(ctx, client, "http://"+p.addr+"/api/live") {
			p.first = time.Since(began)
			return p, nil
		}
		select {
		case err := <-p.exited:
			p.exited <- err
			return nil, fmt.Errorf("%s ended before it answered: %v", binary, err)
		case <-ctx.Done():
			p.stop()
			return nil, fmt.Errorf("wait for %s: %w", binary, ctx.Err())
		case <-time.After(probePause):
		}
	}
}

// stop kills the process and waits for it. It may be called again.
func (p *process) stop() {
	_ = p.stdin.Close()
	_ = p.cmd.Process.Kill()
	err := <-p.exited
	p.exited <- err
	if p.end != nil {
		p.end()
	}
}

// rss is the resident memory of the process in bytes.
func (p *process) rss(ctx context.Context) (int64, error) {
	out, err := exec.CommandContext(ctx, "ps", "-o", "rss=", "-p", strconv.Itoa(p.cmd.Process.Pid)).Output()
	if err != nil {
		return 0, fmt.Errorf("read the resident memory: %w", err)
	}
	kib, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the resident memory: %w", err)
	}
	return kib << 10, nil
}

// clockTick is the unit of the times in /proc/PID/stat, the same on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// processorTime is what the process has used so far; false where there is no /proc.
func (p *process) processorTime() (time.Duration, bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/stat")
	if err != nil {
		return 0, false
	}
	return statTime(string(text))
}

// statTime reads user and system time, fields 14 and 15 of /proc/PID/stat. The second field is a name in brackets.
func statTime(text string) (time.Duration, bool) {
	_, rest, ok := strings.Cut(text, ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 13 {
		return 0, false
	}
	user, err1 := strconv.Atoi(fields[11])
	system, err2 := strconv.Atoi(fields[12])
	return time.Duration(user+system) * clockTick, err1 == nil && err2 == nil
}

// answered reports whether the request was answered with 200.
func answered(ctx context.Context, client *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err == nil && resp.StatusCode == http.StatusOK
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port), nil
}
