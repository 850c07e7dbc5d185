package main

import (
	"context"
	"os"
	"time"
)

// parentCheck is how often the parent is looked at.
const parentCheck = 500 * time.Millisecond

// watchParent calls gone when the process that started this one has ended. A host that is killed, or that
// gives up waiting at its own shutdown, leaves its handler behind alive; nothing would ever end it (design D10).
func watchParent(ctx context.Context, gone func()) {
	first := os.Getppid()
	t := time.NewTicker(parentCheck)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			if os.Getppid() != first {
				gone()
				return
			}
		}
	}
}
