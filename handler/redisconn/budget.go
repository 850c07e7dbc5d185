package redisconn

import "fmt"

// Budget is the arithmetic of connections, the same everywhere (design D8): connections of a process times
// the processes of all apps, against the server's limit.
type Budget struct {
	// PerProcess is 1 (commands) or 2 (and a subscription), for each primary of a cluster.
	PerProcess int
	// Instances is how many processes of all apps may run at once.
	Instances int
	// Limit is how many connections Redis allows, 0 when unknown.
	Limit int
}

// warnShare is the share of the limit, in percent, above which a warning is due.
const warnShare = 80

// Used is how many connections all processes have together.
func (b Budget) Used() int { return b.PerProcess * b.Instances }

// Fits reports whether the budget is within warnShare of the limit; an unknown limit fits nothing.
func (b Budget) Fits() bool { return b.Limit > 0 && b.Used()*100 <= b.Limit*warnShare }

// Warnings says what is tight, and the cure.
func (b Budget) Warnings() []string {
	if b.Limit <= 0 || b.Used() <= 0 {
		return nil
	}
	cure := "choose a larger tier"
	if fit := b.Limit * warnShare / 100 / b.PerProcess; fit > 0 {
		cure = fmt.Sprintf("lower MAX_INSTANCES so that there are at most %d, or %s", fit, cure)
	}
	var warnings []string
	switch {
	case b.Used() > b.Limit:
		warnings = append(warnings, fmt.Sprintf("%d instances with %d connections each need %d, and Redis allows %d: %s",
			b.Instances, b.PerProcess, b.Used(), b.Limit, cure))
	case !b.Fits():
		warnings = append(warnings, fmt.Sprintf("%d instances with %d connections each use %d of the %d that Redis allows, which is above %d %%: %s",
			b.Instances, b.PerProcess, b.Used(), b.Limit, warnShare, cure))
	}
	if 2*b.Used() > b.Limit && b.Used() <= b.Limit {
		warnings = append(warnings, fmt.Sprintf("a rolling deploy has twice the processes for a while and would need %d of %d connections: deploy with at most %d instances running",
			2*b.Used(), b.Limit, b.Limit/2/b.PerProcess))
	}
	return warnings
}
