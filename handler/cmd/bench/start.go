package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"
)

const (
	// warmStarts come first and do not count: they bring the binary into the file cache.
	warmStarts = 3
	// startBar is for p50, and sizeBar in MB (10^6 bytes) for the binary. The bar was 10 ms before the Prometheus library
	// came in: its packages, and what they need, take about 2 ms to load.
	startBar = 15 * time.Millisecond
	sizeBar  = 20
)

// starts is section E: from exec to the first answer, as the Functions host sees it.
func starts(ctx context.Context, p plan, r *report) error {
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return fmt.Errorf("make a data folder: %w", err)
	}
	defer os.RemoveAll(dir)
	took := make([]time.Duration, 0, p.starts)
	for i := range warmStarts + p.starts {
		handler, err := startProcess(ctx, []string{"DATA_DIR=" + dir}, p.handler)
		if err != nil {
			return err
		}
		handler.stop()
		if i >= warmStarts {
			took = append(took, handler.first)
		}
	}
	slices.Sort(took)
	r.atMost("E", "handler start to first answer, p50", percentile(took, 50), startBar)
	r.figure("E", fmt.Sprintf("handler start to first answer, %d starts", p.starts), "p50 %s  p99 %s  max %s",
		readable(percentile(took, 50)), readable(percentile(took, 99)), readable(took[len(took)-1]))
	return nil
}

// size is section F: what the deployment package carries.
func size(_ context.Context, p plan, r *report) error {
	binary, err := os.Stat(p.handler)
	if err != nil {
		return fmt.Errorf("look at the binary: %w", err)
	}
	r.numberAtMost("E", "size of the handler's binary, stripped", float64(binary.Size())/1e6, sizeBar, " MB")
	return nil
}

// percentile returns the p-th percentile of sorted values by nearest rank, 0 of nothing.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max((len(sorted)*p+99)/100, 1)-1]
}
