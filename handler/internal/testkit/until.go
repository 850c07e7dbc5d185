package testkit

// Until repeats do until over is closed, and once more then. It ends with the first error of do.
func Until(over <-chan struct{}, do func() error) error {
	for {
		last := false
		select {
		case <-over:
			last = true
		default:
		}
		if err := do(); err != nil || last {
			return err
		}
	}
}
