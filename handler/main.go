// Command handler is the custom handler of User Connectivity: one process per instance, started by the
// Azure Functions host.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"userconnectivity/handler/expiry"
)

// version is set by the build.
var version = "dev"

// The heap of a handler is small and its garbage plenty, so that Go's defaults would collect it dozens of times a
// second, a sixth of the processor time of a heartbeat. It may grow to five times what lives instead, up to
// memoryLimit; from there on it is collected as often as it takes. GOGC and GOMEMLIMIT overrule both. See
// https://go.dev/doc/gc-guide.
const (
	gcPercent   = 400
	memoryLimit = 512 << 20
)

func tuneGC() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}

// exitRestart asks the host for a new process at once, which does not count as a crash.
const exitRestart = 200

func main() {
	tuneGC()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Environ(), os.Stdout)
	code := exitCode(err)
	time.AfterFunc(closeTimeout, func() { os.Exit(code) }) // when nobody reads the line
	if err != nil {
		fmt.Fprintln(os.Stderr, "handler:", err)
	}
	os.Exit(code)
}

// exitCode is what the process ends with. It is never 0: the host takes that as a wish to stay away and starts no other
// process (design D10).
func exitCode(err error) int {
	switch {
	case err == nil:
		return 2
	case errors.Is(err, expiry.ErrStuck):
		return exitRestart
	}
	return 1
}
