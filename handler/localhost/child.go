package localhost

import (
	"os"
	"os/exec"
	"runtime"
	"time"
)

// child is a running child process.
type child struct {
	*os.Process
	done  chan struct{} // closed once the process has ended and was waited for
	state *os.ProcessState
}

// startChild starts cmd. The goroutine that starts it keeps its OS thread until the process has ended: on
// Linux the parent-death signal follows the thread, not the process.
func startChild(cmd *exec.Cmd) (*child, error) {
	cmd.SysProcAttr = childAttributes()
	cmd.WaitDelay = time.Second // a grandchild that holds the output must not hold up the host
	c := &child{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		c.Process = cmd.Process
		started <- err
		if err == nil {
			_ = cmd.Wait() // the state says how it ended
			c.state = cmd.ProcessState
			close(c.done)
		}
	}()
	return c, <-started
}

// stop asks the process to end, kills it after grace, and returns when it has ended.
func (c *child) stop(ask os.Signal, grace time.Duration) {
	if err := c.Signal(ask); err == nil {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-c.done:
		case <-timer.C:
		}
	}
	c.kill()
}

// kill ends the process and returns when it has ended.
func (c *child) kill() {
	_ = c.Kill() // it fails only when the process has ended already
	<-c.done
}
