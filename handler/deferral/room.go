package deferral

import (
	"bytes"
	"container/list"
	"slices"
	"time"

	"userconnectivity/handler/presence"
)

// maxPerSession bounds the items that wait for one session. It is reached only where none may replace another:
// beats and leaves in turn, or out of order.
const maxPerSession = 8

// item is a beat or a leave that waits.
type item struct {
	ticket uint64 // orders the items of a user by when their calls came in
	leave  bool
	beat   presence.Beat // of a leave User, Session, Seq, At and Traceparent
}

func itemOfBeat(b presence.Beat) item {
	if b.At.IsZero() {
		b.At = time.Now() // not when it is written
	}
	// The caller may use its memory again.
	b.Groups, b.Meta = slices.Clone(b.Groups), bytes.Clone(b.Meta)
	if b.TTL != nil {
		b.TTL = new(*b.TTL)
	}
	if b.Seq != nil {
		b.Seq = new(*b.Seq)
	}
	return item{beat: b}
}

func itemOfLeave(l presence.Leave) item {
	if l.At.IsZero() {
		l.At = time.Now()
	}
	if l.Seq != nil {
		l.Seq = new(*l.Seq)
	}
	return item{leave: true, beat: presence.Beat{User: l.User, Session: l.Session, Seq: l.Seq, At: l.At, Traceparent: l.Traceparent}}
}

func (it *item) asLeave() presence.Leave {
	b := it.beat
	return presence.Leave{User: b.User, Session: b.Session, Seq: b.Seq, At: b.At, Traceparent: b.Traceparent}
}

// size estimates the memory of an item, in bytes.
func (it *item) size() int64 {
	n := 320 + len(it.beat.User) + len(it.beat.Session) + len(it.beat.Meta) + len(it.beat.Traceparent)
	for _, g := range it.beat.Groups {
		n += 16 + len(g)
	}
	return int64(n)
}

// over reports whether the store would find the item stale because of its age alone. One that came over a queue is older
// than we know: it was received here after it was enqueued.
func (it *item) over(now time.Time) bool {
	if it.leave {
		return now.Sub(it.beat.At) >= presence.EndMemory
	}
	ttl := presence.DefaultTTL
	if it.beat.TTL != nil {
		ttl = *it.beat.TTL
	}
	return now.Sub(it.beat.At) >= ttl+it.beat.Grace
}

// follows reports whether the store accepts next whenever it accepted it, of the same session, right before:
// the rules of design D6 about instants and seq.
func (it *item) follows(next *item) bool {
	a, b := it.beat.Seq, next.beat.Seq
	at, nextAt := it.beat.At, next.beat.At
	if queued := !it.beat.Enqueued.IsZero(); queued || !next.beat.Enqueued.IsZero() {
		if !queued || next.beat.Enqueued.IsZero() {
			return false // two clocks
		}
		at, nextAt = it.beat.Enqueued, next.beat.Enqueued
	}
	return !nextAt.Before(at) && (a == nil && b == nil || a != nil && b != nil && *b > *a)
}

// queue has the items of one user that wait, in order. All of a user wait once one does, because groups are the
// user's: the order between its sessions counts too.
type queue struct {
	items   []item
	sending int // the first items, which are being written: they change no more
	place   *list.Element
}

// sessionItems returns the positions of a session's items that are not being written.
func (q *queue) sessionItems(session string) []int {
	var at []int
	for i := q.sending; i < len(q.items); i++ {
		if q.items[i].beat.Session == session {
			at = append(at, i)
		}
	}
	return at
}

// has returns how many items of a session wait, those that are being written too.
func (q *queue) has(session string) (n int) {
	for i := range q.items {
		if q.items[i].beat.Session == session {
			n++
		}
	}
	return n
}

// superseded returns the positions of a session's items that no longer matter: without them the rest has the same
// effect, whatever the state is to which it will be applied. It keeps
//
//	the last item;
//	the last beat that sets the groups, and the last that sets the meta, as an omitted field keeps the old value;
//	a leave, and the beats before it, unless a later beat sets the meta: the leave may end the session, and a
//	beat would then start it without meta; and how a leave works depends on the grace of the beat before it;
//	whatever the last item does not follow: the state decides which of the two is stale.
//
// What was announced in between, as an end and a new start, is not announced: the events tell of the result.
func (q *queue) superseded(session string) []int {
	at := q.sessionItems(session)
	if len(at) < 2 || q.items[at[len(at)-1]].leave {
		return nil
	}
	var gone []int
	next := &q.items[at[len(at)-1]]
	groups, meta := next.beat.Groups != nil, next.beat.Meta != nil // set by a later beat
	for _, i := range slices.Backward(at[:len(at)-1]) {
		it := &q.items[i]
		if !it.follows(next) || it.leave && !meta {
			break
		}
		if (groups || it.beat.Groups == nil) && (meta || it.beat.Meta == nil) {
			gone = append(gone, i)
			continue
		}
		groups, meta = groups || it.beat.Groups != nil, meta || it.beat.Meta != nil
		next = it
	}
	return gone
}

// overdue returns the positions of the items whose time is over, and how many of these are lost: the others have
// handed what they set to the next beat of their session.
func (q *queue) overdue(now time.Time) (gone []int, lost int) {
	for i := q.sending; i < len(q.items); i++ {
		it := &q.items[i]
		if !it.over(now) {
			continue
		}
		gone = append(gone, i)
		switch {
		case it.leave:
			lost++
		case !q.handOver(i):
			lost++
			// The session would be over by now: an older beat with a longer time to live must not revive it.
			for k := i - 1; k >= q.sending; k-- {
				if older := &q.items[k]; older.beat.Session == it.beat.Session {
					if older.leave {
						break
					}
					gone = append(gone, k)
				}
			}
		}
	}
	return gone, lost
}

// handOver gives what the beat at position i sets to the next beat of its session, where that omits it. It
// reports whether there is one.
func (q *queue) handOver(i int) bool {
	it := &q.items[i]
	groups, meta := it.beat.Groups, it.beat.Meta
	for k := i + 1; k < len(q.items); k++ {
		next := &q.items[k]
		if next.beat.Session != it.beat.Session {
			if next.beat.Groups != nil {
				groups = nil // another session of the user set them later
			}
			continue
		}
		if next.leave {
			meta = nil // it is of the session that ends
			continue
		}
		if next.beat.Groups == nil {
			next.beat.Groups = groups
		}
		if next.beat.Meta == nil {
			next.beat.Meta = meta
		}
		return true
	}
	return false
}

// room has everything that waits. It has no lock.
type room struct {
	maxSessions int
	maxBytes    int64

	users    map[string]*queue
	order    *list.List // of *queue, by when the user's first item came
	sessions int
	items    int
	bytes    int64

	superseded, expired int64
}

func newRoom(maxSessions int, maxBytes int64) *room {
	return &room{maxSessions: maxSessions, maxBytes: maxBytes, users: map[string]*queue{}, order: list.New()}
}

// add puts an item behind those of its user with a lower ticket. It reports false when there is no room.
func (r *room) add(it item) bool {
	q := r.users[it.beat.User]
	if q == nil {
		q = &queue{}
		q.place = r.order.PushBack(q)
		r.users[it.beat.User] = q
	}
	at := len(q.items)
	for at > q.sending && q.items[at-1].ticket > it.ticket {
		at--
	}
	if q.has(it.beat.Session) == 0 {
		r.sessions++
	}
	q.items = slices.Insert(q.items, at, it)
	r.items++
	r.bytes += it.size()
	gone := q.superseded(it.beat.Session)
	r.superseded += int64(len(gone))
	r.remove(q, gone)
	if len(gone) == 0 && (r.sessions > r.maxSessions || r.bytes > r.maxBytes || q.has(it.beat.Session) > maxPerSession) {
		r.remove(q, []int{at})
		return false
	}
	return true
}

// remove takes items out.
func (r *room) remove(q *queue, at []int) {
	if len(at) == 0 {
		return
	}
	user := q.items[at[0]].beat.User
	slices.Sort(at)
	for _, i := range slices.Backward(slices.Compact(at)) {
		it := q.items[i]
		q.items = slices.Delete(q.items, i, i+1)
		r.items--
		r.bytes -= it.size()
		if q.has(it.beat.Session) == 0 {
			r.sessions--
		}
	}
	if len(q.items) == 0 {
		r.order.Remove(q.place)
		delete(r.users, user)
	}
}

// expire takes out what is too old to matter.
func (r *room) expire(now time.Time) {
	r.bytes = 0 // what is handed over counts once more
	for e := r.order.Front(); e != nil; {
		q := e.Value.(*queue)
		e = e.Next()
		gone, lost := q.overdue(now)
		for i := range q.items {
			r.bytes += q.items[i].size()
		}
		r.expired += int64(lost)
		r.remove(q, gone)
	}
}

// chunk is what is written at once: the first items of some users.
type chunk struct {
	queues []*queue
	items  []item
}

// isAway reports whether the items of a queue, which is not empty, must wait.
func (q *queue) isAway(away Away) bool {
	if away == nil {
		return false
	}
	_, is := away(q.items[0].beat.User)
	return is
}

// anyReady reports whether there is anything that need not wait.
func (r *room) anyReady(away Away) bool {
	for e := r.order.Front(); e != nil; e = e.Next() {
		if !e.Value.(*queue).isAway(away) {
			return true
		}
	}
	return false
}

// take marks up to limit items as being written: of each user who is not away those at the front that are leaves, or
// beats.
func (r *room) take(leaves bool, limit int, away Away) chunk {
	var c chunk
	for e := r.order.Front(); e != nil && len(c.items) < limit; e = e.Next() {
		q := e.Value.(*queue)
		if q.isAway(away) {
			continue
		}
		for q.sending < len(q.items) && q.items[q.sending].leave == leaves && len(c.items) < limit {
			c.items = append(c.items, q.items[q.sending])
			q.sending++
		}
		if q.sending > 0 {
			c.queues = append(c.queues, q)
		}
	}
	return c
}

// written takes out what was written, and returns how much that was. What is of the users in later stays, behind the
// other users' items.
func (r *room) written(c chunk, later map[string]bool) (n int) {
	for _, q := range c.queues {
		if later[q.items[0].beat.User] {
			q.sending = 0
			r.order.MoveToBack(q.place)
			continue
		}
		n += q.sending
		at := make([]int, q.sending)
		for i := range at {
			at[i] = i
		}
		q.sending = 0
		r.remove(q, at)
	}
	return n
}

// failed keeps what could not be written, behind the other users' items: one that fails again and again must not
// hold them up. It may have been applied all the same: it has the same instant again.
func (r *room) failed(c chunk) {
	for _, q := range c.queues {
		q.sending = 0
		r.order.MoveToBack(q.place)
	}
}

// oldest is when the oldest item came in, zero when none waits.
func (r *room) oldest() (t time.Time) {
	for _, q := range r.users {
		for i := range q.items {
			if at := q.items[i].beat.At; t.IsZero() || at.Before(t) {
				t = at
			}
		}
	}
	return t
}
