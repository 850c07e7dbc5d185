// Package npm installs the npm packages that tests run on.
package npm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

const installTimeout = 3 * time.Minute

// Install runs npm ci in a folder unless its node_modules hold what its lock file names: only the first run needs the
// registry. Test processes that run at the same time wait for each other.
func Install(dir string) error {
	for _, tool := range []string{"node", "npm"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%w (this test needs Node.js 18 or later with npm)", err)
		}
	}
	lockFile := filepath.Join(dir, "package-lock.json")
	lock, err := os.Open(lockFile)
	if err != nil {
		return err
	}
	defer lock.Close()
	ctx, cancel := context.WithTimeout(context.Background(), installTimeout)
	defer cancel()
	for {
		err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) // ends with the file
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", lockFile, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock %s: held by another process for %v", lockFile, installTimeout)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if installed(dir) {
		return nil
	}
	cmd := exec.CommandContext(ctx, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("npm ci: %w\n%s", err, out)
	}
	return nil
}

// installed compares the versions in the lock file with those that npm wrote into node_modules as its last step.
func installed(dir string) bool {
	type lock struct {
		Packages map[string]struct{ Version string }
	}
	var want, have lock
	for file, into := range map[string]*lock{"package-lock.json": &want, "node_modules/.package-lock.json": &have} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || json.Unmarshal(b, into) != nil {
			return false
		}
	}
	for name, p := range want.Packages {
		if name != "" && have.Packages[name] != p {
			return false
		}
	}
	return true
}
