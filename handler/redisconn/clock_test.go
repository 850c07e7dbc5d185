package redisconn

import (
	"math/rand/v2"
	"testing"
	"time"
)

// remote is a server whose clock is off by so much, and round trips to which take random times.
type remote struct {
	rng   *rand.Rand
	clock *Clock
	now   time.Duration // of the process
	off   time.Duration
}

func (r *remote) at(d time.Duration) time.Time { return r.clock.begun.Add(d) }

// roundTrip has the server say its time, in whole milliseconds, at some moment between the sending and the arrival.
func (r *remote) roundTrip(most time.Duration) {
	there, back := time.Duration(r.rng.Int64N(int64(most))), time.Duration(r.rng.Int64N(int64(most)))
	sent := r.now
	said := r.at(sent + there).Add(r.off).Truncate(time.Millisecond)
	r.now += there + back
	r.clock.Learn(said, time.Millisecond, r.at(sent), r.at(r.now))
}

// TestInstantsKeepTheirOrder: however long round trips take and though the two clocks go apart, what was received later
// has no earlier instant, and each instant is within what the replies tell.
func TestInstantsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	for _, drift := range []int64{-4000, 0, 4000} { // a part of the time that passes
		rng := rand.New(rand.NewPCG(uint64(drift+5000), 1))
		r := &remote{rng: rng, clock: NewClock(), off: 90 * time.Second}
		r.roundTrip(40 * time.Millisecond)
		var last int64
		moves := 0
		for range 20_000 {
			pass := time.Duration(rng.Int64N(int64(20 * time.Millisecond)))
			r.now += pass
			if drift != 0 {
				r.off += pass / time.Duration(drift)
			}
			before := r.clock.distance
			if rng.IntN(3) == 0 {
				r.roundTrip(time.Duration(1+rng.IntN(60)) * time.Millisecond)
			}
			if r.clock.distance != before {
				moves++
			}
			at := r.clock.instant(r.at(r.now))
			if at < last {
				t.Fatalf("drift 1/%d: an instant is %d ms before the one before it", drift, last-at)
			}
			last = at
			if wrong := time.UnixMilli(at).Sub(r.at(r.now).Add(r.off)).Abs(); wrong > 60*time.Millisecond {
				t.Fatalf("drift 1/%d: an instant is wrong by %v", drift, wrong)
			}
		}
		if drift == 0 && moves > 20 {
			t.Errorf("the distance changed %d times though neither clock did", moves)
		}
	}
}

// TestTheServersClockIsSet: one reply is enough to go by the new time, also for what was dated before and not yet sent.
func TestTheServersClockIsSet(t *testing.T) {
	t.Parallel()
	for _, step := range []time.Duration{time.Hour, 3 * time.Second, -3 * time.Second, -time.Hour} {
		r := &remote{rng: rand.New(rand.NewPCG(1, 2)), clock: NewClock()}
		r.roundTrip(5 * time.Millisecond)
		waiting := r.clock.Dating()
		received := r.at(r.now)
		at := waiting.Received(received, time.Time{})
		r.off += step
		r.roundTrip(5 * time.Millisecond)
		if _, err := waiting.MarshalBinary(); err != nil {
			t.Fatal(err)
		}
		want := received.Add(r.off).UnixMilli()
		if got := waiting.Applied(at, want+1e9); got < want-10 || got > want+10 {
			t.Errorf("after a step by %v what waited is dated %d ms off", step, got-want)
		}
		if got := r.clock.instant(received); got < want-10 || got > want+10 {
			t.Errorf("after a step by %v an instant is %d ms off", step, got-want)
		}
	}
}
