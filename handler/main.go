// Command handler is the custom handler of User Connectivity: one process per instance, started by the
// Azure Functions host.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.LookupEnv, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "handler:", err)
		os.Exit(1)
	}
	// Never 0: the host takes that as a wish to stay away and starts no other process (design D10).
	os.Exit(2)
}
