// Command startbench measures how long the handler takes from its start to its first answer, as the Functions
// host sees it: exec, then GET /api/live until it is answered. It prints p50, p99 and the maximum, and fails when
// p50 is over the bar.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"syscall"
	"time"
)

const (
	// warmUps come first and do not count: they bring the binary into the file cache.
	warmUps = 3
	// startTimeout bounds one start.
	startTimeout = 30 * time.Second
	// probePause is how long to wait after an attempt that was not answered.
	probePause = 100 * time.Microsecond
)

func main() {
	handler := flag.String("handler", "dist/handler", "the handler's `binary`")
	starts := flag.Int("n", 100, "how many starts")
	bar := flag.Duration("bar", 10*time.Millisecond, "fail when p50 is over it; 0 never fails")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *handler, *starts, *bar); err != nil {
		fmt.Fprintln(os.Stderr, "startbench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, handler string, starts int, bar time.Duration) error {
	if starts < 1 {
		return fmt.Errorf("-n %d: at least one start is needed", starts)
	}
	dir, err := os.MkdirTemp("", "startbench")
	if err != nil {
		return fmt.Errorf("make a data folder: %w", err)
	}
	defer os.RemoveAll(dir)
	took := make([]time.Duration, 0, starts)
	for i := range warmUps + starts {
		d, err := start(ctx, handler, dir)
		if err != nil {
			return fmt.Errorf("start %s: %w", handler, err)
		}
		if i >= warmUps {
			took = append(took, d)
		}
	}
	slices.Sort(took)
	p50 := percentile(took, 50)
	fmt.Printf("handler start to first answered request, %d starts: p50 %s  p99 %s  max %s\n", starts,
		p50.Round(10*time.Microsecond), percentile(took, 99).Round(10*time.Microsecond), took[len(took)-1].Round(10*time.Microsecond))
	if bar > 0 && p50 > bar {
		return fmt.Errorf("p50 is %s, the bar is %s", p50, bar)
	}
	return nil
}

// percentile returns the p-th percentile of sorted values by nearest rank.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)*p+99)/100-1]
}

// start runs the handler until its first answer, and kills it. Every connection is a new one, as the host's.
func start(ctx context.Context, handler, dir string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	port, err := freePort()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, handler)
	cmd.Env = append(os.Environ(), "FUNCTIONS_CUSTOMHANDLER_PORT="+port, "DATA_DIR="+dir)
	began := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	defer func() {
		cancel() // kills it
		<-exited
	}()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for {
		if answered(ctx, client, "http://127.0.0.1:"+port+"/api/live") {
			return time.Since(began), nil
		}
		select {
		case err := <-exited:
			exited <- err
			return 0, fmt.Errorf("it ended before it answered: %v", err)
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(probePause):
		}
	}
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
