package presence

import (
	"slices"
	"sync/atomic"
)

// Tally counts what a Tracker did since it was made. An invalid beat or leave is in none of the counts.
type Tally struct {
	// Beats and Leaves count those that the state took, by what they did; every outcome is there.
	Beats  map[Change]int64
	Leaves map[LeaveOutcome]int64
	// BeatsFailed and LeavesFailed count those whose call failed: whether they were applied is not known.
	BeatsFailed, LeavesFailed int64
}

// The outcomes that are counted, the usual one first.
var (
	changes       = [...]Change{ChangeRenewed, ChangeOnline, ChangeStarted, ChangeStale, ChangeDeferred, ChangeFull, ChangeLater}
	leaveOutcomes = [...]LeaveOutcome{Left, Leaving, LeaveStale, LeaveUnknown, LeaveDeferred, LeaveLater}
)

// tally has the counts. To count takes one atomic addition, and no memory.
type tally struct {
	beats                     [len(changes)]atomic.Int64
	leaves                    [len(leaveOutcomes)]atomic.Int64
	beatsFailed, leavesFailed atomic.Int64
}

// countBeats adds once for each run of beats that did the same.
func (t *tally) countBeats(outcomes []BeatOutcome) {
	for len(outcomes) > 0 {
		n := 1
		for n < len(outcomes) && outcomes[n].Change == outcomes[0].Change {
			n++
		}
		if i := slices.Index(changes[:], outcomes[0].Change); i >= 0 {
			t.beats[i].Add(int64(n))
		}
		outcomes = outcomes[n:]
	}
}

func (t *tally) countLeaves(outcomes []LeaveOutcome) {
	for _, o := range outcomes {
		if i := slices.Index(leaveOutcomes[:], o); i >= 0 {
			t.leaves[i].Add(1)
		}
	}
}

// Tally returns the counts.
func (t *Tracker) Tally() Tally {
	counts := Tally{
		Beats: make(map[Change]int64, len(changes)), Leaves: make(map[LeaveOutcome]int64, len(leaveOutcomes)),
		BeatsFailed: t.tally.beatsFailed.Load(), LeavesFailed: t.tally.leavesFailed.Load(),
	}
	for i, c := range changes {
		counts.Beats[c] = t.tally.beats[i].Load()
	}
	for i, o := range leaveOutcomes {
		counts.Leaves[o] = t.tally.leaves[i].Load()
	}
	return counts
}
