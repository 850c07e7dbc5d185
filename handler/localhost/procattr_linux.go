package localhost

import "syscall"

// childAttributes lets a child end with the thread that started it, and keeps Ctrl-C in a terminal for the
// host, which then stops its children in order.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
