package expiry

import "time"

// LookEvery sets how often the watchdog looks, before Run.
func (l *Listener) LookEvery(d time.Duration) { l.watchdog.lookEvery = d }

// Looks returns how often the watchdog has looked and found nothing stuck.
func (l *Listener) Looks() int64 { return l.watchdog.looks.Load() }

// StuckLooks is after how many looks a loop is stuck.
const StuckLooks = stuckLooks
