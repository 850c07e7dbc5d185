package loadtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// stopTimeout is how long a process may take to end before it is killed.
const stopTimeout = 15 * time.Second

// process is a process of the test's own.
type process struct {
	cmd    *exec.Cmd
	log    *os.File
	ask    os.Signal
	exited chan struct{} // closed when it has ended
}

// startProcess starts cmd with its output in the file log; the signal ask will end it.
func startProcess(cmd *exec.Cmd, log string, ask os.Signal) (*process, error) {
	file, err := os.Create(log)
	if err != nil {
		return nil, fmt.Errorf("make a log file: %w", err)
	}
	cmd.Stdout, cmd.Stderr = file, file
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C reaches the test, which stops the others
	if err := cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", filepath.Base(cmd.Path), err), file.Close())
	}
	p := &process{cmd: cmd, log: file, ask: ask, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(p.exited)
	}()
	return p, nil
}

// await polls until ready reports true; the error names the log and tells what stands in it last.
func (p *process) await(ctx context.Context, every time.Duration, ready func() bool) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for !ready() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready: %w\n%s", ctx.Err(), p.tail())
		case <-p.exited:
			return fmt.Errorf("it ended: %s\n%s", p.cmd.ProcessState, p.tail())
		case <-t.C:
		}
	}
	return nil
}

// tail returns the end of the log.
func (p *process) tail() []byte {
	const most = 2 << 10
	text, err := os.ReadFile(p.log.Name())
	if err != nil {
		return []byte(err.Error())
	}
	return text[max(len(text)-most, 0):]
}

// stop ends the process and returns when it has ended.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(p.ask) // it fails only when it has ended already
	select {
	case <-p.exited:
	case <-time.After(stopTimeout):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
	_ = p.log.Close()
}
