// Command handler is the custom handler of User Connectivity: one process per instance, started by the
// Azure Functions host.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
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

func main() {
	tuneGC()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Environ(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "handler:", err)
		os.Exit(1)
	}
	// Never 0: the host takes that as a wish to stay away and starts no other process (design D10).
	os.Exit(2)
}
