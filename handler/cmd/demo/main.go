// Command demo shows the main job on real input: it starts the local host with everything embedded, has users
// beat, lets some fall silent, and checks every promise by what the API answers. It fails when one is broken.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// options are the flags.
type options struct {
	host, pkg     string
	redis         string
	notifications string
	users, silent int
	ttl           time.Duration
	kill          bool
	keep          bool
}

// variants are the ways of -all: with expired events, without, and on the embedded Redis, which has none.
var variants = []struct{ redis, notifications string }{{"server", "on"}, {"server", "off"}, {"mini", "on"}}

func main() {
	var o options
	var all bool
	flag.StringVar(&o.host, "host", "bin/localhost", "the local host's `binary`")
	flag.StringVar(&o.pkg, "package", "dist", "the staged package, a `folder`")
	flag.StringVar(&o.redis, "redis", "auto", "auto, server or mini")
	flag.StringVar(&o.notifications, "notifications", "on", "on or off: whether redis-server publishes expired events")
	flag.IntVar(&o.users, "users", 1000, "how many users beat")
	flag.IntVar(&o.silent, "silent", 300, "how many of them fall silent")
	flag.DurationVar(&o.ttl, "ttl", 5*time.Second, "how long a beat holds, whole seconds")
	flag.BoolVar(&o.kill, "kill", false, "kill -9 the handler in the middle")
	flag.BoolVar(&all, "all", false, "run with notifications, without them, and on the embedded Redis")
	flag.BoolVar(&o.keep, "keep", false, "keep the data folder, and say where it is")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	runs := []options{o}
	if all {
		runs = nil
		for _, v := range variants {
			run := o
			run.redis, run.notifications = v.redis, v.notifications
			runs = append(runs, run)
		}
	}
	var broken []error
	for _, run := range runs {
		result, err := runDemo(ctx, run)
		if err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			os.Exit(1)
		}
		result.print(os.Stdout)
		broken = append(broken, result.broken()...)
	}
	if err := errors.Join(broken...); err != nil {
		fmt.Fprintln(os.Stderr, "demo: a promise is broken:\n  "+strings.ReplaceAll(err.Error(), "\n", "\n  "))
		os.Exit(1)
	}
	fmt.Println("Every promise was kept.")
}
