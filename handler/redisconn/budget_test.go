package redisconn

import (
	"slices"
	"testing"
)

func TestBudget(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		budget   Budget
		used     int
		fits     bool
		warnings []string
	}{
		"unknown limit":       {Budget{PerProcess: 2, Instances: 200}, 400, false, nil},
		"nothing runs":        {Budget{PerProcess: 2, Limit: 250}, 0, true, nil},
		"no connections yet":  {Budget{Instances: 200, Limit: 250}, 0, true, nil},
		"half of it":          {Budget{PerProcess: 1, Instances: 125, Limit: 250}, 125, true, nil},
		"a deploy is too big": {Budget{PerProcess: 1, Instances: 126, Limit: 250}, 126, true, []string{"a rolling deploy has twice the processes for a while and would need 252 of 250 connections: deploy with at most 125 instances running"}},
		"at 80 %":             {Budget{PerProcess: 1, Instances: 200, Limit: 250}, 200, true, []string{"a rolling deploy has twice the processes for a while and would need 400 of 250 connections: deploy with at most 125 instances running"}},
		"above 80 %": {Budget{PerProcess: 1, Instances: 201, Limit: 250}, 201, false, []string{
			"201 instances with 1 connections each use 201 of the 250 that Redis allows, which is above 80 %: lower MAX_INSTANCES so that there are at most 200, or choose a larger tier",
			"a rolling deploy has twice the processes for a while and would need 402 of 250 connections: deploy with at most 125 instances running",
		}},
		"all of it": {Budget{PerProcess: 2, Instances: 125, Limit: 250}, 250, false, []string{
			"125 instances with 2 connections each use 250 of the 250 that Redis allows, which is above 80 %: lower MAX_INSTANCES so that there are at most 100, or choose a larger tier",
			"a rolling deploy has twice the processes for a while and would need 500 of 250 connections: deploy with at most 62 instances running",
		}},
		"too many": {Budget{PerProcess: 2, Instances: 200, Limit: 250}, 400, false, []string{
			"200 instances with 2 connections each need 400, and Redis allows 250: lower MAX_INSTANCES so that there are at most 100, or choose a larger tier",
		}},
		"not even one": {Budget{PerProcess: 2, Instances: 1, Limit: 1}, 2, false, []string{"1 instances with 2 connections each need 2, and Redis allows 1: choose a larger tier"}},
	} {
		b := c.budget
		if b.Used() != c.used || b.Fits() != c.fits {
			t.Errorf("%s: used %d, fits %v; want %d, %v", name, b.Used(), b.Fits(), c.used, c.fits)
		}
		if got := b.Warnings(); !slices.Equal(got, c.warnings) {
			t.Errorf("%s: warnings %q, want %q", name, got, c.warnings)
		}
	}
}
