//go:build !linux

package localhost

import "syscall"

func childAttributes() *syscall.SysProcAttr { return nil }
