package redisstore

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"userconnectivity/handler/presence"
)

// model is what presence means (design D6), in memory and as plainly as possible. It shares no code with the
// scripts. Times are in ms; every method is told the time of Redis.
type model struct {
	life   string // as the first event said
	floor  int64  // no epoch is below it
	n      int64  // events so far
	users  map[string]*modelUser
	outbox []modelEntry // what no relay has acknowledged, oldest first
}

// modelUser is what is known of a user.
type modelUser struct {
	epoch  int64 // of the newest event, 0 when there was none
	since  int64 // when the status began
	seen   int64 // the newest instant that was applied
	groups []string
	live   []*modelSession // in the order of their starts
	ends   []modelEnd      // oldest first
	saved  int64           // when the user last changed
}

type modelSession struct {
	name       string
	start      int64 // the epoch of the event that started it
	ttl, grace int64
	last       int64 // the instant of the last applied beat or leave
	due        int64
	seq        *int64
	meta       string
	leaving    bool
	leased     int64 // when the lease was last written
}

// modelEnd remembers that a session ended, or that a leave came for one that was not live.
type modelEnd struct {
	name string
	last int64
	seq  *int64
	at   int64
}

// modelEntry is an event in the outbox. Relay is the one that read it, -1 when none did.
type modelEntry struct {
	Entry
	relay int
}

const (
	endMemory    = int64(70 * time.Minute / time.Millisecond)
	recordMemory = int64(24 * time.Hour / time.Millisecond)
)

func newModel() *model { return &model{users: map[string]*modelUser{}} }

func (m *model) clone() *model {
	c := *m
	c.users = make(map[string]*modelUser, len(m.users))
	for id, u := range m.users {
		v := *u
		v.live = make([]*modelSession, len(u.live))
		for i, s := range u.live {
			v.live[i] = new(*s)
		}
		v.ends = slices.Clone(u.ends)
		c.users[id] = &v
	}
	c.outbox = slices.Clone(m.outbox)
	return &c
}

// forgottenAt is when nothing is known of the user any more: 24 hours after going offline, or after the last epoch
// where that is ahead of the clock, and 70 minutes after the last end. It is 0 while the user is online.
func (u *modelUser) forgottenAt() int64 {
	if len(u.live) > 0 {
		return 0
	}
	at := int64(0)
	if u.epoch > 0 {
		at = max(u.since, u.epoch) + recordMemory
	}
	for _, e := range u.ends {
		at = max(at, e.at+endMemory)
	}
	return at
}

// user returns what is known of a user at a time.
func (m *model) user(id string, now int64) *modelUser {
	u := m.users[id]
	if u == nil || len(u.live) == 0 && u.forgottenAt() <= now {
		u = &modelUser{}
		m.users[id] = u
	}
	u.ends = slices.DeleteFunc(u.ends, func(e modelEnd) bool { return now-e.at >= endMemory })
	return u
}

func (u *modelUser) session(name string) *modelSession {
	if i := slices.IndexFunc(u.live, func(s *modelSession) bool { return s.name == name }); i >= 0 {
		return u.live[i]
	}
	return nil
}

// prior returns what a new beat or leave of a session is compared with: the last instant and seq that were
// applied, to the live session or before its remembered end.
func (u *modelUser) prior(name string) (last int64, seq *int64, known bool) {
	if s := u.session(name); s != nil {
		return s.last, s.seq, true
	}
	for _, e := range u.ends {
		if e.name == name {
			return e.last, e.seq, true
		}
	}
	return 0, nil, false
}

// overtaken reports whether something newer was applied to the session.
func (u *modelUser) overtaken(name string, instant int64, seq *int64) bool {
	last, lastSeq, known := u.prior(name)
	if !known {
		return false
	}
	return instant < last || seq != nil && lastSeq != nil && *seq <= *lastSeq
}

// beat applies one beat that came in age ms ago.
func (m *model) beat(now int64, b presence.Beat, age int64) presence.BeatOutcome {
	u := m.user(b.User, now)
	s := u.session(b.Session)
	_, lastSeq, _ := u.prior(b.Session)
	instant := now - age
	due := instant + b.TTL.Milliseconds() + b.Grace.Milliseconds()
	answer := func(change presence.Change) presence.BeatOutcome {
		o := presence.BeatOutcome{Change: change, Status: presence.Offline, Epoch: u.epoch, Seq: lastSeq}
		if len(u.live) > 0 {
			o.Status = presence.Online
		}
		if s != nil {
			o.ExpiresAt, o.Seq = instantOf(s.due), s.seq
		}
		return o
	}
	switch {
	case u.overtaken(b.Session, instant, b.Seq), due <= now:
		return answer(presence.ChangeStale)
	case s == nil && len(u.live) == presence.MaxSessions:
		return answer(presence.ChangeFull)
	}

	change, previous := presence.ChangeRenewed, u.epoch
	if s == nil {
		change = presence.ChangeStarted
		if len(u.live) == 0 {
			change, u.since = presence.ChangeOnline, now
		}
		u.epoch = m.nextEpoch(u, now)
		s = &modelSession{name: b.Session, start: u.epoch, seq: lastSeq}
		u.live = append(u.live, s)
		u.forgetEnd(b.Session)
	}
	s.ttl, s.grace = b.TTL.Milliseconds(), b.Grace.Milliseconds()
	s.last, s.due, s.leaving = instant, due, false
	if b.Seq != nil {
		s.seq = b.Seq
	}
	if b.Groups != nil {
		u.groups = b.Groups
	}
	switch string(b.Meta) {
	case "":
	case "{}":
		s.meta = ""
	default:
		s.meta = string(b.Meta)
	}
	u.seen, u.saved, s.leased = max(u.seen, instant), now, now

	basis := cmp.Or(previous, u.epoch)
	switch change {
	case presence.ChangeOnline:
		m.emit(now, b.User, s, presence.UserOnline, presence.ReasonBeat, basis, 0, b.Traceparent)
	case presence.ChangeStarted:
		m.emit(now, b.User, s, presence.SessionStarted, presence.ReasonBeat, basis, 0, b.Traceparent)
	}
	return answer(change)
}

// leave applies one leave that came in age ms ago.
func (m *model) leave(now int64, l presence.Leave, age int64) presence.LeaveOutcome {
	u := m.user(l.User, now)
	instant := now - age
	if u.overtaken(l.Session, instant, l.Seq) {
		return presence.LeaveStale
	}
	u.saved = now
	s := u.session(l.Session)
	if s == nil {
		_, lastSeq, _ := u.prior(l.Session)
		u.remember(modelEnd{l.Session, instant, cmp.Or(l.Seq, lastSeq), now})
		return presence.LeaveUnknown
	}
	s.last, s.due = instant, min(s.due, instant+s.grace)
	s.seq = cmp.Or(l.Seq, s.seq)
	u.seen = max(u.seen, instant)
	if s.grace == 0 {
		m.end(now, l.User, s, presence.ReasonLeft, 0, l.Traceparent)
		return presence.Left
	}
	s.leaving, s.leased = true, now
	return presence.Leaving
}

// due finds the sessions whose deadline is reached.
func (m *model) due(now int64) Due {
	d := Due{Now: instantOf(now), Outbox: int64(len(m.outbox)), Members: []string{}}
	for _, x := range m.deadlines() {
		if x.due > now || len(d.Members) == maxItems {
			d.Next = instantOf(x.due)
			break
		}
		d.Members = append(d.Members, x.member)
	}
	return d
}

type modelDeadline struct {
	member string
	due    int64
}

// deadlines returns the deadlines of all live sessions, earliest first.
func (m *model) deadlines() []modelDeadline {
	all := []modelDeadline{}
	for id, u := range m.users {
		for _, s := range u.live {
			all = append(all, modelDeadline{id + "/" + s.name, s.due})
		}
	}
	slices.SortFunc(all, func(a, b modelDeadline) int {
		return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.member, b.member))
	})
	return all
}

// claim ends those of the members that are due.
func (m *model) claim(now int64, members []string) Claims {
	var c Claims
	for _, member := range members {
		user, session, _ := cutMember(member)
		s := m.user(user, now).session(session)
		if s == nil || s.due > now {
			c.Lost++
			continue
		}
		reason := presence.ReasonExpired
		if s.leaving {
			reason = presence.ReasonLeft
		}
		c.Late = append(c.Late, time.Duration(now-s.due)*time.Millisecond)
		m.end(now, user, s, reason, s.due, "")
	}
	return c
}

// end ends a live session.
func (m *model) end(now int64, user string, s *modelSession, reason presence.Reason, deadline int64, trace string) {
	u := m.users[user]
	u.live = slices.DeleteFunc(u.live, func(other *modelSession) bool { return other == s })
	u.remember(modelEnd{s.name, s.last, s.seq, now})
	u.epoch, u.saved = m.nextEpoch(u, now), now
	what := presence.SessionEnded
	if len(u.live) == 0 {
		what, u.since = presence.UserOffline, now
	}
	m.emit(now, user, s, what, reason, s.start, deadline, trace)
}

// remember keeps an end: one of a session, the newest 32 of a user.
func (u *modelUser) remember(e modelEnd) {
	u.forgetEnd(e.name)
	u.ends = append(u.ends, e)
	u.ends = u.ends[max(0, len(u.ends)-32):]
}

func (u *modelUser) forgetEnd(name string) {
	u.ends = slices.DeleteFunc(u.ends, func(e modelEnd) bool { return e.name == name })
}

func (m *model) nextEpoch(u *modelUser, now int64) int64 { return max(u.epoch+1, now, m.floor) }

func (m *model) emit(now int64, user string, s *modelSession, what presence.EventType, reason presence.Reason, basis, deadline int64, trace string) {
	u := m.users[user]
	e := presence.Event{
		ID: presence.EventID(user, s.name, what, basis), Type: what, Subject: presence.Subject{User: user, Session: s.name},
		Body: presence.Body{
			Epoch: u.epoch, Reason: reason, Deadline: instantOf(deadline), DetectedAt: instantOf(now), Groups: append([]string{}, u.groups...),
			Meta: rawMeta(s.meta), LastSeen: instantOf(u.seen), Life: m.life,
		},
	}
	for _, l := range u.live {
		e.Sessions = append(e.Sessions, presence.EventSession{
			Session: l.name, StartEpoch: l.start, TTLSeconds: int(l.ttl / 1000), GraceSeconds: int(l.grace / 1000),
		})
	}
	e.Traceparent = cmp.Or(trace, presence.TraceparentOf(e.ID))
	m.n++
	m.outbox = append(m.outbox, modelEntry{Entry{N: m.n, Event: e}, -1})
}

// known returns what a query for the user answers: nil when there was no event, or its time is over.
func (m *model) known(id string, now int64) *presence.User {
	u := m.user(id, now)
	if u.epoch == 0 {
		return nil
	}
	p := presence.User{
		ID: id, Status: presence.Offline, Epoch: u.epoch, Since: instantOf(u.since), LastSeen: instantOf(u.seen),
		Groups: append([]string{}, u.groups...),
	}
	for _, s := range u.live {
		p.Status = presence.Online
		p.Sessions = append(p.Sessions, presence.Session{
			ID: s.name, StartEpoch: s.start, TTL: time.Duration(s.ttl) * time.Millisecond, Grace: time.Duration(s.grace) * time.Millisecond,
			ExpiresAt: instantOf(s.due), Meta: rawMeta(s.meta),
		})
	}
	return &p
}

// read is a relay that reads: entries that none has read yet (from -1), or its own again.
func (m *model) read(relay, from, limit int) []Entry {
	return m.take(relay, limit, func(e modelEntry) bool { return e.relay == from })
}

// takeOver is a relay that takes whatever any relay has read.
func (m *model) takeOver(relay, limit int) []Entry {
	return m.take(relay, limit, func(e modelEntry) bool { return e.relay >= 0 })
}

func (m *model) take(relay, limit int, which func(modelEntry) bool) []Entry {
	taken := []Entry{}
	for i := range m.outbox {
		if e := &m.outbox[i]; len(taken) < limit && which(*e) {
			e.relay = relay
			taken = append(taken, e.Entry)
		}
	}
	return taken
}

// acknowledge removes entries, whoever read them last.
func (m *model) acknowledge(entries []Entry) {
	done := map[int64]bool{}
	for _, e := range entries {
		done[e.N] = true
	}
	m.outbox = slices.DeleteFunc(m.outbox, func(e modelEntry) bool { return done[e.N] })
}

// turns returns the times after now at which a rule changes its answer, in no order.
func (m *model) turns(now int64) []int64 {
	var at []int64
	for _, id := range slices.Sorted(maps.Keys(m.users)) {
		u := m.users[id]
		for _, s := range u.live {
			at = append(at, s.due)
		}
		for _, e := range u.ends {
			at = append(at, e.at+endMemory)
		}
		at = append(at, u.forgottenAt())
	}
	return slices.DeleteFunc(at, func(t int64) bool { return t <= now })
}

// instantOf is a time in ms as the package gives it, zero for 0.
func instantOf(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func rawMeta(meta string) json.RawMessage {
	if meta == "" {
		return nil
	}
	return json.RawMessage(meta)
}
