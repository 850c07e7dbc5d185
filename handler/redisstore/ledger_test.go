package redisstore

import (
	"fmt"

	"userconnectivity/handler/presence"
)

// ledger judges the events of a partition by what is promised of any sequence of them, whatever made them:
// none is missing or twice in the outbox, epochs rise, starts and ends alternate, no id is on two of them. It
// takes each event once, in the order of the outbox.
type ledger struct {
	n     int64
	users map[string]*ledgerUser
	ids   map[string]bool
	// What must never be: user.offline of a user who was offline, an epoch not above the user's last one, an
	// id of another event.
	doubleOfflines, epochsNotRising, idsTwice int
	starts, ends                              int
}

type ledgerUser struct {
	epoch    int64
	sessions map[string]int64 // live session -> epoch of its start
}

func newLedger() *ledger { return &ledger{users: map[string]*ledgerUser{}, ids: map[string]bool{}} }

// take judges the next entry.
func (l *ledger) take(entry Entry) error {
	e := entry.Event
	u := l.users[e.User]
	if u == nil {
		u = &ledgerUser{sessions: map[string]int64{}}
		l.users[e.User] = u
	}
	started, live := u.sessions[e.Session]
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("event %d, %s of %s/%s: %s", entry.N, e.Type, e.User, e.Session, fmt.Sprintf(format, args...))
	}
	if e.Type == presence.UserOffline && len(u.sessions) == 0 {
		l.doubleOfflines++
		return wrong("the user was offline")
	}
	switch {
	case entry.N != l.n+1:
		return wrong("it follows event %d", l.n)
	case e.Epoch <= u.epoch:
		l.epochsNotRising++
		return wrong("epoch %d after %d", e.Epoch, u.epoch)
	case l.ids[e.ID]:
		l.idsTwice++
		return wrong("id %s was on another event", e.ID)
	}
	basis := started
	switch e.Type {
	case presence.UserOnline, presence.SessionStarted:
		if live {
			return wrong("the session was live since %d", started)
		}
		if (e.Type == presence.UserOnline) != (len(u.sessions) == 0) {
			return wrong("the user had %d sessions", len(u.sessions))
		}
		basis = u.epoch
		if e.ID != presence.EventID(e.User, e.Session, e.Type, basis) {
			basis = e.Epoch // the user was forgotten, or never seen
		}
		u.sessions[e.Session] = e.Epoch
		l.starts++
	default:
		if !live {
			return wrong("the session was not live")
		}
		delete(u.sessions, e.Session)
		if (e.Type == presence.UserOffline) != (len(u.sessions) == 0) {
			return wrong("the user has %d sessions left", len(u.sessions))
		}
		l.ends++
	}
	if e.ID != presence.EventID(e.User, e.Session, e.Type, basis) {
		return wrong("id %s does not come from basis %d", e.ID, basis)
	}
	if len(e.Sessions) != len(u.sessions) {
		return wrong("it tells of %d sessions, the user has %d", len(e.Sessions), len(u.sessions))
	}
	for _, s := range e.Sessions {
		if start, ok := u.sessions[s.Session]; !ok || start != s.StartEpoch {
			return wrong("it tells of session %s since %d, it is live since %d", s.Session, s.StartEpoch, start)
		}
	}
	l.n, u.epoch = entry.N, e.Epoch
	l.ids[e.ID] = true
	return nil
}

// check compares what the events say with what a query answers (nil for unknown).
func (l *ledger) check(id string, got *presence.User) error {
	want := l.users[id]
	if want == nil || len(want.sessions) == 0 {
		if got != nil && got.Status != presence.Offline {
			return fmt.Errorf("user %s is %s, the events say offline", id, got.Status)
		}
		return nil
	}
	if got == nil || got.Status != presence.Online || got.Epoch != want.epoch || len(got.Sessions) != len(want.sessions) {
		return fmt.Errorf("user %s is %+v, the events say online at %d with sessions %v", id, got, want.epoch, want.sessions)
	}
	for _, s := range got.Sessions {
		if want.sessions[s.ID] != s.StartEpoch {
			return fmt.Errorf("session %s/%s is live since %d, the events say %d", id, s.ID, s.StartEpoch, want.sessions[s.ID])
		}
	}
	return nil
}
