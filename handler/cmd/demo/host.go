package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// host is a running local host.
type host struct {
	cmd    *exec.Cmd
	dir    string
	ready  string
	output *os.File
	exited chan error
	client http.Client
	url    string
}

// readyFile is what the local host tells of itself.
type readyFile struct {
	URL        string `json:"url"`
	HandlerPID int    `json:"handlerPid"`
}

const startTimeout = 30 * time.Second

// startHost starts the local host on a free port with a data folder of its own.
func startHost(ctx context.Context, o options) (*host, error) {
	dir, err := os.MkdirTemp("", "connectivity-demo")
	if err != nil {
		return nil, fmt.Errorf("make a data folder: %w", err)
	}
	h := &host{dir: dir, ready: filepath.Join(dir, "ready.json"), exited: make(chan error, 1)}
	h.client = http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}
	if h.output, err = os.Create(filepath.Join(dir, "host.log")); err != nil {
		return nil, fmt.Errorf("make the log file: %w", err)
	}
	h.cmd = exec.Command(o.host, "--package", o.pkg, "--port", "0", "--data-dir", dir, "--ready-file", h.ready,
		"--redis", o.redis, "--redis-notifications", o.notifications)
	h.cmd.Stdout, h.cmd.Stderr = h.output, h.output
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C reaches the demo, which stops the host
	if err := h.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s (make demo builds it): %w", o.host, err)
	}
	go func() { h.exited <- h.cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r, err := h.waitReady(ctx, 0)
	if err != nil {
		h.stop(true)
		return nil, err
	}
	h.url = r.URL
	return h, nil
}

// waitReady waits until a handler with another pid than old is ready.
func (h *host) waitReady(ctx context.Context, old int) (readyFile, error) {
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for {
		var r readyFile
		if text, err := os.ReadFile(h.ready); err == nil && json.Unmarshal(text, &r) == nil && r.HandlerPID != old {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, fmt.Errorf("the local host is not ready, see %s: %w", h.output.Name(), ctx.Err())
		case err := <-h.exited:
			h.exited <- err
			return r, fmt.Errorf("the local host ended, see %s: %w", h.output.Name(), err)
		case <-t.C:
		}
	}
}

// stop ends the local host, as Ctrl-C does, and removes its data unless it is to be kept.
func (h *host) stop(keep bool) {
	_ = h.cmd.Process.Signal(os.Interrupt)
	select {
	case <-h.exited:
	case <-time.After(15 * time.Second):
		_ = h.cmd.Process.Kill()
		<-h.exited
	}
	_ = h.output.Close()
	if keep {
		fmt.Println("data kept in", h.dir)
		return
	}
	_ = os.RemoveAll(h.dir)
}

// errRetry marks an answer after which the same call may succeed: the handler is being restarted.
var errRetry = errors.New("not answered now")

// call makes one request; out may be nil.
func (h *host) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, h.url+path, body)
	if err != nil {
		return err
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := h.client.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", errRetry, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	switch {
	case err != nil || resp.StatusCode >= 500:
		return fmt.Errorf("%s %s: %w: status %d %s", method, path, errRetry, resp.StatusCode, text)
	case resp.StatusCode >= 300:
		return fmt.Errorf("%s %s: status %d %s", method, path, resp.StatusCode, text)
	case out == nil:
		return nil
	}
	return json.Unmarshal(text, out)
}

// retry repeats a call until it is answered.
func (h *host) retry(ctx context.Context, method, path string, in, out any) (retries int, err error) {
	for {
		err := h.call(ctx, method, path, in, out)
		if err == nil || !errors.Is(err, errRetry) || ctx.Err() != nil {
			return retries, err
		}
		retries++
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}
