// Package loadtest reproduces a published load test of serverless functions that share one Redis: 10,000 users
// and 35,000 invocations of two HTTP functions, beside a queue function, on a Redis of the smallest tier with
// about 250 connections. It runs against this app and, beside it, against two naive designs of that test, and
// writes one self-contained HTML report.
//
// The load comes from vegeta: it sends at a steady pace whatever the answers do, so that a slow app does not
// hide its own latency.
package loadtest

import (
	"context"
	"fmt"
	"io"
	"time"
)

// The published test: 10,000 users, 35,000 invocations "between the two functions with HTTP bindings" in just
// over 30 minutes, about 19 a second, on up to 200 instances and 250 connections. It says neither how the
// invocations divide between the two functions nor how many messages the queue function had; here each HTTP
// function gets half, and the messages come on top, one for every five HTTP invocations.
const (
	PublishedUsers       = 10_000
	PublishedInvocations = 35_000
	PublishedRate        = 19
	PublishedInstances   = 200
	PublishedMaxClients  = 250
)

// Options say what is run. The zero value of URL and of those below it starts everything on this machine.
type Options struct {
	// Users is how many users there are, at least 1.
	Users int
	// Invocations is how many HTTP invocations there are, rounded up to a multiple of 10. The messages are
	// a fifth of it, on top.
	Invocations int
	// Rate is the HTTP invocations per second; 0 is as fast as the machine allows.
	Rate int
	// Workers is how many requests may be under way at once.
	Workers int
	// MaxClients is the maxclients of each redis-server that is started here.
	MaxClients int
	// Processes is how many handler processes share the HTTP load, each an instance; 0 is one behind its host.
	Processes int
	// Naive also runs the two naive designs.
	Naive bool
	// Host is the local host's binary, Package the staged package's folder.
	Host, Package string

	// URL is that of a running app, such as http://127.0.0.1:7071; then nothing of this app is started here.
	URL string
	// Key is the function key of the running app, empty when it asks for none.
	Key string
	// QueueURL is where the running app's broker takes messages; without it none are sent.
	QueueURL string
	// RedisURL is the Redis of the running app; without it its connected clients are not known.
	RedisURL string

	// Progress gets the progress bars, nil means none.
	Progress io.Writer
}

// Run runs the designs one after the other, ours first, each on a Redis of its own. An invocation that fails is
// a result, see Report.Problems; an error means that the test could not be run.
func Run(ctx context.Context, o Options) (*Report, error) {
	o.Invocations = (o.Invocations + 9) / 10 * 10
	r := &Report{Options: o, When: time.Now()}
	ours, err := runOurs(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("this app: %w", err)
	}
	r.Runs = append(r.Runs, ours)
	if !o.Naive {
		return r, nil
	}
	for _, quit := range []bool{false, true} {
		naive, err := runNaive(ctx, o, quit)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", naiveName(quit), err)
		}
		r.Runs = append(r.Runs, naive)
	}
	return r, nil
}

// measure puts the load on an app while it watches the connected clients of its Redis.
func measure(ctx context.Context, o Options, design string, to target, redisURL string) (*Result, error) {
	var watch *clientWatch
	if redisURL != "" {
		var err error
		if watch, err = watchClients(ctx, redisURL); err != nil {
			return nil, err
		}
		defer watch.close()
	}
	r := &Result{Design: design}
	var err error
	if r.Samples, err = attack(ctx, o, design, to); err != nil {
		return nil, err
	}
	for _, s := range r.Samples {
		r.Took = max(r.Took, s.At+s.Latency)
	}
	if to.drain != nil {
		if r.Drained, r.Faults, err = to.drain(ctx); err != nil {
			return nil, err
		}
	}
	if watch != nil {
		if err := watch.finish(ctx, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}
