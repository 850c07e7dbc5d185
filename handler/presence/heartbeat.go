package presence

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"userconnectivity/handler/fault"
)

// Beat is one heartbeat of one session.
type Beat struct {
	User, Session string
	// TTL is how long the beat holds the session online (MinTTL to MaxTTL, whole seconds); nil is the default.
	TTL *time.Duration
	// Grace is added to the deadline, and is what a leave waits (0 to MaxGrace, whole seconds).
	Grace time.Duration
	// Groups replace the user's groups; nil keeps them, an empty slice clears them.
	Groups []string
	// Meta replaces the session's meta object; nil keeps it, {} clears it.
	Meta json.RawMessage
	// Seq orders the writers of one session name (0 to MaxSeq); nil does not.
	Seq *int64
	// At is when this process received the beat, with a monotonic reading; zero stands for when the store is called.
	At time.Time
	// Enqueued is when the broker took in the message that the beat came with, by the broker's clock; zero for a beat that
	// came over no queue. Where it is set the beat is dated by it, as if the clock were that of Redis, and by At only while
	// it waits in memory.
	Enqueued time.Time
	// Traceparent is the W3C trace context of the request.
	Traceparent string
}

// Change says what a beat did.
type Change string

// What a beat can do. Full and Later are never answered: they become a Conflict, and an Unavailable error of this beat
// alone. Later says that a later version wrote the user's record, and only a process of that version may change it.
const (
	ChangeOnline   Change = "online"
	ChangeStarted  Change = "started"
	ChangeRenewed  Change = "renewed"
	ChangeStale    Change = "stale"
	ChangeDeferred Change = "deferred"
	ChangeFull     Change = "full"
	ChangeLater    Change = "later"
)

// BeatOutcome is what the store made of a beat.
type BeatOutcome struct {
	Change Change
	Status Status
	// Epoch is that of the user's newest event, 0 when there was none.
	Epoch int64
	// ExpiresAt is the session's deadline, zero when it is not live.
	ExpiresAt time.Time
	// Seq is the session's last seq, nil when no beat had one.
	Seq *int64
}

// Receipt answers a beat.
type Receipt struct {
	User, Session string
	BeatOutcome
	// BeatAfter is when the next beat should be sent: the server sets the pace.
	BeatAfter time.Duration
}

// normal fills in the defaults and returns what is wrong with the beat.
func (t *Tracker) normal(b *Beat) []fault.FieldError {
	var c checks
	if b.TTL == nil {
		b.TTL = &t.defaultTTL
	}
	c.id("/user", b.User)
	c.id("/session", b.Session)
	c.seconds("/ttlSeconds", *b.TTL, MinTTL, MaxTTL)
	c.seconds("/graceSeconds", b.Grace, 0, MaxGrace)
	c.groups(b.Groups)
	c.seq(b.Seq)
	if b.Meta != nil {
		c.meta(&b.Meta)
	}
	return c
}

// Heartbeat applies one beat. It returns a *fault.Error: Invalid, fault.Conflict when the user has MaxSessions live
// sessions, fault.Unavailable when the state cannot be reached or a later version of the app wrote that of the user.
func (t *Tracker) Heartbeat(ctx context.Context, b Beat) (Receipt, error) {
	if err := fault.Refuse(t.normal(&b)); err != nil {
		return Receipt{}, err
	}
	outcomes, err := t.applyBeats(ctx, []Beat{b})
	if err != nil {
		return Receipt{}, fmt.Errorf("apply a heartbeat: %w", err)
	}
	o := outcomes[0]
	if err := o.Change.refusal(b.User); err != nil {
		return Receipt{}, err
	}
	return Receipt{User: b.User, Session: b.Session, BeatOutcome: o, BeatAfter: t.pace.after(*b.TTL)}, nil
}

// Rejection is one item of a bulk call that was not applied. Err says whether the item may be sent again: it passes
// (Passing) where the item is refused for now.
type Rejection struct {
	Index int
	Err   error
}

// BulkReceipt answers a bulk of beats. Accepted counts the items that hold now, Stale those that came too late.
type BulkReceipt struct {
	Accepted, Deferred, Stale int
	Rejected                  []Rejection
	// BeatAfter is the shortest of the accepted items', the default ttl's when there is none.
	BeatAfter time.Duration
}

// Heartbeats applies up to MaxBatch beats. Items are judged one by one: a bad one is rejected, the others
// are applied. It returns a *fault.Error of kind Unavailable when the state cannot be reached; some items may have
// been applied then, and all may be sent again.
func (t *Tracker) Heartbeats(ctx context.Context, beats []Beat) (BulkReceipt, error) {
	var r BulkReceipt
	shortest := time.Duration(0)
	good, at := make([]Beat, 0, len(beats)), make([]int, 0, len(beats))
	for i := range beats {
		if err := fault.Refuse(t.normal(&beats[i])); err != nil {
			r.Rejected = append(r.Rejected, Rejection{i, err})
			continue
		}
		if ttl := *beats[i].TTL; shortest == 0 || ttl < shortest {
			shortest = ttl
		}
		good, at = append(good, beats[i]), append(at, i)
	}
	outcomes, err := t.applyBeats(ctx, good)
	if err != nil {
		return BulkReceipt{}, fmt.Errorf("apply %d heartbeats: %w", len(good), err)
	}
	for i, o := range outcomes {
		switch o.Change {
		case ChangeFull, ChangeLater:
			r.Rejected = append(r.Rejected, Rejection{at[i], o.Change.refusal(good[i].User)})
		case ChangeStale:
			r.Stale++
		case ChangeDeferred:
			r.Deferred++
		default:
			r.Accepted++
		}
	}
	if shortest == 0 {
		shortest = t.defaultTTL
	}
	r.BeatAfter = t.pace.after(shortest)
	return r, nil
}

func (t *Tracker) applyBeats(ctx context.Context, beats []Beat) ([]BeatOutcome, error) {
	if len(beats) == 0 {
		return nil, nil
	}
	start := time.Now()
	outcomes, err := t.store.Heartbeats(ctx, beats)
	t.pace.observe(time.Since(start))
	if err != nil {
		t.tally.beatsFailed.Add(int64(len(beats)))
		return nil, err
	}
	t.tally.countBeats(outcomes)
	return outcomes, nil
}

// refusal returns why a beat of the user was not applied, nil where it was, came too late or waits.
func (c Change) refusal(user string) error {
	switch c {
	case ChangeFull:
		return &fault.Error{Kind: fault.Conflict, Message: fmt.Sprintf(
			"user %s has %d live sessions, which is the limit: end one, or wait until one expires", user, MaxSessions)}
	case ChangeLater:
		return later(user)
	}
	return nil
}

// later is the error of a beat or leave of a user whose record only a later version may change. Sent again, it may meet
// a process of that version.
func later(user string) error {
	return &fault.Error{Kind: fault.Unavailable, RetryAfter: time.Second, Message: fmt.Sprintf(
		"the state of user %s was written by a newer version of this app, which is being deployed: try again", user)}
}
