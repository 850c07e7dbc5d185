package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// load is requests over keep-alive connections, each of which sends its next request when the last is answered.
// The generator shares the processors with what it measures, so it does as little as it can: requests are made
// beforehand, and of the answers only status and length are read.
type load struct {
	addr  string
	conns int
	// requests returns, for each connection, what makes its next request. The bytes are used until the next call.
	requests func(conn int) func() []byte
}

// latencies returns an empty histogram: 1 us to 1 minute, three significant figures.
func latencies() *hdrhistogram.Histogram { return hdrhistogram.New(1, 60_000_000, 3) }

// quantile reads a histogram of microseconds.
func quantile(h *hdrhistogram.Histogram, q float64) time.Duration {
	return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond
}

// outcome is what a load or a loop found.
type outcome struct {
	count int64
	took  time.Duration
	times *hdrhistogram.Histogram
	// mallocs and bytes are what this process allocated meanwhile.
	mallocs, bytes uint64
}

// rate is per second.
func (o outcome) rate() float64 { return float64(o.count) / o.took.Seconds() }

// run sends for d and waits for the last answers. Any answer but 200 ends it with an error.
func (l load) run(ctx context.Context, d time.Duration) (outcome, error) {
	conns := make([]net.Conn, l.conns)
	for i := range conns {
		var dialer net.Dialer
		c, err := dialer.DialContext(ctx, "tcp", l.addr)
		if err != nil {
			return outcome{}, fmt.Errorf("connect to %s: %w", l.addr, err)
		}
		defer c.Close()
		conns[i] = c
	}
	return loop(l.conns, d, func(i int) func() error {
		c, next, answer := conns[i], l.requests(i), make([]byte, 16<<10)
		_ = c.SetDeadline(time.Now().Add(d + 30*time.Second)) // fails only on a closed connection, as the write then does
		return func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			if _, err := c.Write(next()); err != nil {
				return fmt.Errorf("send a request: %w", err)
			}
			return readAnswer(c, answer)
		}
	})
}

// loop calls what start returns, again and again, in n goroutines for d, and measures each call.
func loop(n int, d time.Duration, start func(i int) func() error) (outcome, error) {
	calls := make([]func() error, n)
	times := make([]*hdrhistogram.Histogram, n)
	for i := range calls {
		calls[i], times[i] = start(i), latencies()
	}
	errs := make([]error, n)
	var running sync.WaitGroup
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	end := began.Add(d)
	for i := range n {
		running.Go(func() {
			for at := time.Now(); at.Before(end); {
				if errs[i] = calls[i](); errs[i] != nil {
					return
				}
				done := time.Now()
				_ = times[i].RecordValue(min(max(done.Sub(at).Microseconds(), 1), 60_000_000)) // always in range
				at = done
			}
		})
	}
	running.Wait()
	o := outcome{took: time.Since(began), times: latencies()}
	runtime.ReadMemStats(&after)
	o.mallocs, o.bytes = after.Mallocs-before.Mallocs, after.TotalAlloc-before.TotalAlloc
	for _, h := range times {
		o.times.Merge(h)
	}
	o.count = o.times.TotalCount()
	if err := errors.Join(errs...); err != nil {
		return o, err
	}
	if o.count == 0 {
		return o, errors.New("nothing was answered")
	}
	return o, nil
}

var (
	statusOK      = []byte("HTTP/1.1 200 ")
	headEnd       = []byte("\r\n\r\n")
	contentLength = []byte("\r\nContent-Length: ")
)

// readAnswer reads one answer into buf, which must hold it whole.
func readAnswer(c net.Conn, buf []byte) error {
	n, want := 0, -1
	for want < 0 || n < want {
		if n == len(buf) {
			return fmt.Errorf("an answer is longer than %d bytes", len(buf))
		}
		m, err := c.Read(buf[n:])
		if err != nil {
			return fmt.Errorf("read an answer: %w", err)
		}
		n += m
		if want < 0 {
			if want, err = answerLength(buf[:n]); err != nil {
				return err
			}
		}
	}
	if n > want {
		return errors.New("an answer is longer than it says")
	}
	return nil
}

// answerLength returns how long the answer that begins with these bytes is, head included; -1 while the head is
// not complete. It takes only what our handler writes: status 200 and a Content-Length.
func answerLength(b []byte) (int, error) {
	head := bytes.Index(b, headEnd)
	if head < 0 {
		return -1, nil
	}
	if !bytes.HasPrefix(b, statusOK) {
		return 0, fmt.Errorf("unexpected answer %q", b[:min(len(b), 400)])
	}
	_, rest, ok := bytes.Cut(b[:head+2], contentLength)
	if !ok {
		return 0, errors.New("an answer has no Content-Length")
	}
	n := 0
	for _, digit := range rest {
		if digit < '0' || digit > '9' {
			break
		}
		n = 10*n + int(digit-'0')
	}
	return head + len(headEnd) + n, nil
}

const (
	// userPrefix and twelve digits are a user's id, as long as a UUID. Twelve is what redis-benchmark puts in the
	// place of placeholder.
	userPrefix  = "00000000-0000-4000-8000-"
	placeholder = "__rand_int__"
	userLength  = len(userPrefix) + len(placeholder)
)

// userID returns the id of user n.
func userID(n int) string { return userPrefix + fmt.Sprintf("%012d", n) }

// setUser writes the digits of user n over those of a user id that ends at the end of b.
func setUser(b []byte, n int) {
	for i := range len(placeholder) {
		b[len(b)-1-i] = byte('0' + n%10)
		n /= 10
	}
}

// post returns an HTTP request.
func post(path, body string) []byte {
	return []byte("POST " + path + " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: " +
		strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

// singleBeats are POST /api/heartbeat for the users in turn; the connections take every conns-th.
func singleBeats(users, conns int) func(conn int) func() []byte {
	return func(conn int) func() []byte {
		request := post("/api/heartbeat", `{"user":"`+userID(0)+`"}`)
		id := request[:len(request)-len(`"}`)]
		user := conn
		return func() []byte {
			setUser(id, user)
			user = (user + conns) % users
			return request
		}
	}
}

// bulkBeats are POST /api/heartbeats with the given number of beats, for the users in turn.
func bulkBeats(users, beats int) func(conn int) func() []byte {
	var requests [][]byte
	for first := 0; first < users; first += beats {
		items := make([]string, beats)
		for i := range items {
			items[i] = `{"user":"` + userID((first+i)%users) + `"}`
		}
		requests = append(requests, post("/api/heartbeats", `{"heartbeats":[`+strings.Join(items, ",")+`]}`))
	}
	return func(conn int) func() []byte {
		next := conn
		return func() []byte {
			next++
			return requests[next%len(requests)]
		}
	}
}
