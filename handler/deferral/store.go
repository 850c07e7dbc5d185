// Package deferral keeps heartbeats and leaves in memory while Redis is known to be away, and writes them when it
// is back: nobody who could reach the app goes offline because the app could not reach Redis (design D9). What is
// kept ends with the process.
package deferral

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// store is the live state; redisstore.Store is one.
type store interface {
	Heartbeats(ctx context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error)
	Leaves(ctx context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error)
	Users(ctx context.Context, ids []string) ([]*presence.User, error)
}

const (
	// defaultSessions and defaultBytes bound what is kept, unless Config says otherwise.
	defaultSessions = 10_000
	defaultBytes    = 64 << 20
	// pollEvery is how often Run looks whether the breaker has closed, while something waits.
	pollEvery = 25 * time.Millisecond
	// expireEvery is how often items that are too old are taken out while the breaker is open.
	expireEvery = time.Second
	// retryWait follows a write that failed.
	retryWait = 100 * time.Millisecond
	// writeTimeout bounds one write, lastTimeout the writes that are tried when the process ends.
	writeTimeout = 5 * time.Second
	lastTimeout  = 2 * time.Second
	// minRetry is the least time after which a caller is asked to come back.
	minRetry = time.Second
)

// Config bounds what is kept.
type Config struct {
	// MaxSessions is how many sessions may wait; 10,000 when 0.
	MaxSessions int
	// MaxBytes is how much memory the waiting items may take, estimated; 64 MiB when 0.
	MaxBytes int64
	// Log gets a line when something begins to wait, when it has been written, and when a write fails.
	Log *slog.Logger
}

// Away tells whether the server that has a user's state must be left alone, and when to try again. It is nil while
// no server must.
type Away = func(user string) (retryAfter time.Duration, away bool)

// Store is the live state with a waiting room in front. It is safe for concurrent use.
//
// While the breaker is open beats and leaves wait, in the order in which they came, and what a later one replaces
// is dropped. As long as anything of a user waits, everything of that user goes behind it. Run writes them, with
// the times at which they came, once the breaker is closed; what could not be written stays. An item whose
// deadline passes while it waits is taken out: the live state would find it stale. On a cluster each primary has its
// breaker, and what is said of the breaker is said of that which has the user.
type Store struct {
	next       store
	heartbeats func(context.Context, []presence.Beat) ([]presence.BeatOutcome, error)
	leaves     func(context.Context, []presence.Leave) ([]presence.LeaveOutcome, error)
	away       func() Away
	log        *slog.Logger

	tickets atomic.Uint64
	waiting atomic.Int64 // items in the room
	wake    chan struct{}

	mu        sync.Mutex
	room      *room
	stats     State     // the counts
	expiredAt time.Time // when the room was last searched for what is too old
	failures  int       // writes that failed in a row
	shrink    int       // by how much chunks are smaller than usual; 0 and 1 for not at all
}

// New returns a Store in front of next. away is asked once for each call, and again when a call fails; what it returns
// is used by one goroutine, for one look. It does no I/O.
func New(next store, away func() Away, cfg Config) *Store {
	if cfg.MaxSessions == 0 {
		cfg.MaxSessions = defaultSessions
	}
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = defaultBytes
	}
	return &Store{
		next: next, heartbeats: next.Heartbeats, leaves: next.Leaves, away: away, log: cfg.Log,
		wake: make(chan struct{}, 1), room: newRoom(cfg.MaxSessions, cfg.MaxBytes),
	}
}

// deferred is the answer to a beat that waits: its session will be online once it is written.
var deferred = presence.BeatOutcome{Change: presence.ChangeDeferred, Status: presence.Online}

// Heartbeats applies beats, or keeps them while the breaker is open (ChangeDeferred). It returns an *Error of kind
// Unavailable when the live state cannot be reached though the breaker is closed, and when there is no room; some
// beats may have been applied or kept then, and all may be sent again.
func (s *Store) Heartbeats(ctx context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error) {
	return apply(ctx, s, beats, itemOfBeat, userOfBeat, deferred, s.heartbeats)
}

// Leaves applies leaves, or keeps them while the breaker is open (LeaveDeferred). Its errors are those of
// Heartbeats.
func (s *Store) Leaves(ctx context.Context, leaves []presence.Leave) ([]presence.LeaveOutcome, error) {
	return apply(ctx, s, leaves, itemOfLeave, userOfLeave, presence.LeaveDeferred, s.leaves)
}

func userOfBeat(b *presence.Beat) string   { return b.User }
func userOfLeave(l *presence.Leave) string { return l.User }

// Users reads users. While the breaker of any of them is open it returns an *Error of kind Unavailable at once; the
// Tracker then answers with what was last known.
func (s *Store) Users(ctx context.Context, ids []string) ([]*presence.User, error) {
	if retryAfter, away := anyAway(s.away(), ids, func(id *string) string { return *id }); away {
		return nil, &fault.Error{
			Kind: fault.Unavailable, RetryAfter: max(retryAfter, minRetry),
			Message: "the state store is away for a moment: try again",
		}
	}
	return s.next.Users(ctx, ids)
}

// anyAway reports whether the breaker of any user is open, and when to try again.
func anyAway[In any](away Away, in []In, user func(*In) string) (retryAfter time.Duration, any bool) {
	if away == nil {
		return 0, false
	}
	for i := range in {
		if after, isAway := away(user(&in[i])); isAway {
			retryAfter, any = max(retryAfter, after), true
		}
	}
	return retryAfter, any
}

// apply sends items on, or keeps them.
func apply[In, Out any](ctx context.Context, s *Store, in []In, asItem func(In) item, user func(*In) string, kept Out,
	send func(context.Context, []In) ([]Out, error),
) ([]Out, error) {
	ticket := s.tickets.Add(1)
	away := s.away()
	if away == nil && s.waiting.Load() == 0 {
		return sendOrKeep(ctx, s, ticket, in, asItem, user, kept, send)
	}
	behind, direct, at, retryAfter := split(s, in, user, away)
	if err := keep(s, ticket, behind, asItem, retryAfter); err != nil {
		return nil, err
	}
	out := make([]Out, len(in))
	for i := range out {
		out[i] = kept
	}
	if len(direct) == 0 {
		return out, nil
	}
	answers, err := sendOrKeep(ctx, s, ticket, direct, asItem, user, kept, send)
	if err != nil {
		return nil, err
	}
	for i, answer := range answers {
		out[at[i]] = answer
	}
	return out, nil
}

// split tells the items that must wait from those that may be sent at once: direct[i] is the at[i]th.
func split[In any](s *Store, in []In, user func(*In) string, away Away) (behind, direct []In, at []int, retryAfter time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range in {
		after, isAway := anyAway(away, in[i:i+1], user)
		if isAway || s.room.users[user(&in[i])] != nil {
			behind, retryAfter = append(behind, in[i]), max(retryAfter, after)
		} else {
			direct, at = append(direct, in[i]), append(at, i)
		}
	}
	return behind, direct, at, retryAfter
}

// sendOrKeep sends items, and keeps them when that fails because the breaker of one has opened meanwhile. Nobody knows
// then which were applied: an item that is applied twice is stale the second time, or renews what it has set. (Where
// two sessions of a user set different groups, the one that is written again may win.)
func sendOrKeep[In, Out any](ctx context.Context, s *Store, ticket uint64, in []In, asItem func(In) item, user func(*In) string, kept Out,
	send func(context.Context, []In) ([]Out, error),
) ([]Out, error) {
	out, err := send(ctx, in)
	if err == nil || fault.KindOf(err) != fault.Unavailable {
		return out, err
	}
	retryAfter, away := anyAway(s.away(), in, user)
	if !away {
		return nil, err
	}
	if full := keep(s, ticket, in, asItem, retryAfter); full != nil {
		return nil, fmt.Errorf("%w; after %w", full, err)
	}
	out = make([]Out, len(in))
	for i := range out {
		out[i] = kept
	}
	return out, nil
}

// keep puts items into the room. It returns an error when one does not fit; those before it are kept.
func keep[In any](s *Store, ticket uint64, in []In, asItem func(In) item, retryAfter time.Duration) error {
	if len(in) == 0 {
		return nil
	}
	s.mu.Lock()
	first := s.room.items == 0
	var err error
	for i := range in {
		it := asItem(in[i])
		it.ticket = ticket
		if !s.room.add(it) {
			s.stats.Refused += int64(len(in) - i)
			err = &fault.Error{
				Kind: fault.Unavailable, RetryAfter: max(retryAfter, minRetry),
				Message: "the state store is away and too much waits for it: try again",
			}
			break
		}
		s.stats.Deferred++
	}
	s.waiting.Store(int64(s.room.items))
	first = first && s.room.items > 0
	s.mu.Unlock()
	if first {
		select {
		case s.wake <- struct{}{}:
		default:
		}
		s.log.Info("heartbeats and leaves are kept until Redis is back")
	}
	return err
}

// Run writes what waits whenever the breaker is closed, until ctx ends. It then tries once more for 2 seconds.
func (s *Store) Run(ctx context.Context) {
	for ctx.Err() == nil {
		if s.waiting.Load() == 0 {
			select {
			case <-ctx.Done():
			case <-s.wake:
			}
			continue
		}
		wait := pollEvery
		if err := s.flush(ctx); err != nil {
			wait = retryWait
		}
		sleep(ctx, wait)
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
	defer cancel()
	_ = s.flush(last) // what is left is counted below
	if n := s.waiting.Load(); n > 0 {
		s.log.WarnContext(ctx, "heartbeats and leaves are lost with this process", "items", n)
	}
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// expire takes out what is too old, once a second.
func (s *Store) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.expiredAt) >= expireEvery {
		s.expiredAt = now
		s.room.expire(now)
		s.waiting.Store(int64(s.room.items))
	}
}

// flush writes what waits, beats and leaves in turn, until nothing waits but what belongs behind an open breaker, or a
// write fails.
func (s *Store) flush(ctx context.Context) error {
	began, wrote := time.Now(), 0
	for s.waiting.Load() > 0 && ctx.Err() == nil {
		away := s.away()
		if !s.anyReady(away) {
			s.expire()
			break
		}
		beats, err := s.write(ctx, false, away)
		leaves, leavesErr := s.write(ctx, true, away) // beats that cannot be written hold up no leaves
		wrote += beats + leaves
		if err := errors.Join(err, leavesErr); err != nil {
			return err
		}
	}
	if wrote > 0 {
		s.log.InfoContext(ctx, "what was kept while Redis was away is written", "items", wrote, "took", time.Since(began))
	}
	return nil
}

// anyReady reports whether anything waits whose breaker is closed.
func (s *Store) anyReady(away Away) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.room.anyReady(away)
}

// write writes one chunk of beats or of leaves, of users whose breaker is closed, and returns how many.
func (s *Store) write(ctx context.Context, leaves bool, away Away) (int, error) {
	s.mu.Lock()
	s.room.expire(time.Now())
	s.waiting.Store(int64(s.room.items))
	c := s.room.take(leaves, s.limit(), away)
	s.mu.Unlock()
	if len(c.items) == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	stale, later, err := s.send(ctx, leaves, c.items)
	_, open := anyAway(s.away(), c.items, func(it *item) string { return it.beat.User })

	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		wrote := s.room.written(c, later)
		s.waiting.Store(int64(s.room.items))
		s.stats.Written += int64(wrote)
		s.stats.Stale += stale
		s.failures, s.shrink = 0, s.shrink/2
		if wrote == 0 {
			err = errLater
		}
		return wrote, err
	}
	s.room.failed(c)
	s.stats.Failed++
	if !open {
		// Redis answers others, so it may be one of these items: smaller chunks let the rest pass.
		s.shrink = min(max(2*s.shrink, 2), presence.MaxBatch)
	}
	if s.failures++; s.failures == 1 {
		s.log.WarnContext(ctx, "what was kept while Redis was away could not be written; it stays", "items", len(c.items), "error", err)
	}
	return 0, err
}

// errLater says that all of what was to be written waits for a later version of the app.
var errLater = errors.New("the users' state was written by a later version, and waits for it")

// limit is how many items a chunk may have.
func (s *Store) limit() int { return max(presence.MaxBatch/max(s.shrink, 1), 1) }

// send sends items and returns how many the live state did not accept, and the users of those that only a process of a
// later version can write now: they stay, in case that version is taken back, until their time is over.
func (s *Store) send(ctx context.Context, leaves bool, items []item) (stale int64, later map[string]bool, err error) {
	wait := func(i int) {
		if later == nil {
			later = map[string]bool{}
		}
		later[items[i].beat.User] = true
	}
	defer func() {
		if p := recover(); p != nil { // one bad item must not end the writing of the others
			err = fmt.Errorf("write what was kept: panic: %v\n%s", p, debug.Stack())
		}
	}()
	if leaves {
		in := make([]presence.Leave, len(items))
		for i := range items {
			in[i] = items[i].asLeave()
		}
		outcomes, err := s.leaves(ctx, in)
		for i, o := range outcomes {
			switch o {
			case presence.LeaveStale:
				stale++
			case presence.LeaveLater:
				wait(i)
			}
		}
		return stale, later, err
	}
	in := make([]presence.Beat, len(items))
	for i := range items {
		in[i] = items[i].beat
	}
	outcomes, err := s.heartbeats(ctx, in)
	for i, o := range outcomes {
		switch o.Change {
		case presence.ChangeStale, presence.ChangeFull:
			stale++
		case presence.ChangeLater:
			wait(i)
		}
	}
	return stale, later, err
}

// State is what waits and what became of the rest. The counts are since the process began.
type State struct {
	// Sessions, Items and Bytes are what waits now; Bytes is an estimate.
	Sessions, Items int
	Bytes           int64
	// Oldest is when the oldest waiting item came in, zero when nothing waits.
	Oldest time.Time
	// Deferred counts the items that were kept; Superseded those of them that a later one replaced, Written those
	// that were written, Stale those of these that the live state did not accept, and Expired those whose deadline
	// passed while they waited.
	Deferred, Superseded, Written, Stale, Expired int64
	// Refused counts the items for which there was no room, Failed the writes that failed.
	Refused, Failed int64
}

// State returns what waits and what became of the rest.
func (s *Store) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	state := s.stats
	state.Sessions, state.Items, state.Bytes, state.Oldest = s.room.sessions, s.room.items, s.room.bytes, s.room.oldest()
	state.Superseded, state.Expired = s.room.superseded, s.room.expired
	return state
}
