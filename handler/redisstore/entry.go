package redisstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"userconnectivity/handler/presence"
)

// This file reads what the scripts write: the lines of one event.

// errNewer says that an entry has a form that this version does not know, and a later one may.
var errNewer = errors.New("an entry of a later version")

// The forms of names that a later version may bring, compiled when they are first needed.
var (
	versionForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[1-9][0-9]{0,3}$`) })
	typeForm    = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z]{1,32}(\.[a-z]{1,32}){1,3}$`) })
	reasonForm  = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z][a-z-]{0,31}$`) })
)

// unpack reads an outbox entry; lua/record.lua has its form, lua/key_expired.lua that of version 2. It returns errNewer
// for a version, a type or a reason that it does not know. Lines after those that it knows, and parts of a session after
// those, are left to the versions that know them.
func unpack(packed string) (Entry, error) {
	version, _, _ := strings.Cut(packed, "\n")
	switch {
	case version == "1":
		return unpackTransition(packed)
	case version == "2":
		return unpackKey(packed)
	case versionForm().MatchString(version):
		return Entry{}, errNewer
	}
	return Entry{}, errors.New("its first line is no version")
}

func unpackTransition(packed string) (Entry, error) {
	f := strings.Split(packed, "\n")
	if len(f) < 17 {
		return Entry{}, fmt.Errorf("not an entry of version 1 with 17 lines: it has %d", len(f))
	}
	n := numbers{}
	e := presence.Event{
		Type: presence.EventType(f[1]), Subject: presence.Subject{User: f[2], Session: f[3]}, Traceparent: f[13],
		Body: presence.Body{
			Epoch: n.parse(f[4], 0), Reason: presence.Reason(f[5]), Deadline: n.time(f[7]), DetectedAt: n.time(f[8]),
			LastSeen: n.time(f[9]), Life: f[10], Generation: n.parse(f[11], 0), Groups: strings.Fields(f[14]),
		},
	}
	switch {
	case !e.Type.Valid() && !typeForm().MatchString(f[1]) || !e.Reason.Valid() && !reasonForm().MatchString(f[5]):
		return Entry{}, fmt.Errorf("type %q or reason %q has not the form of one", e.Type, e.Reason)
	case !e.Type.Valid() || !e.Reason.Valid():
		return Entry{}, errNewer
	}
	for _, s := range strings.Fields(f[15]) {
		p := strings.Split(s, ",")
		if len(p) < 4 {
			return Entry{}, fmt.Errorf("session %q has %d parts", s, len(p))
		}
		e.Sessions = append(e.Sessions, presence.EventSession{
			Session: p[0], StartEpoch: n.parse(p[1], 0), TTLSeconds: int(n.parse(p[2], 0)), GraceSeconds: int(n.parse(p[3], 0)),
		})
	}
	basis, counter := n.parse(f[6], 0), n.parse(f[12], 0)
	switch {
	case n.bad:
		return Entry{}, errors.New("a number cannot be read")
	case presence.CheckID(e.User) != "" || presence.CheckID(e.Session) != "":
		return Entry{}, errors.New("user or session is no id") // the queue would refuse it, and all with it
	}
	entry := Entry{N: counter}
	if f[16] != "" {
		// Older builds took what the edge refuses today. Numbers stay as they are written.
		if e.Meta = json.RawMessage(f[16]); !json.Valid(e.Meta) {
			e.Meta, entry.fault = nil, "its meta is not JSON, and is left out"
		}
	}
	e.ID = presence.EventID(e.User, e.Session, e.Type, basis)
	if e.Traceparent == "" {
		e.Traceparent = presence.TraceparentOf(e.ID)
	}
	entry.Event = e
	return entry, nil
}

func unpackKey(packed string) (Entry, error) {
	f := strings.SplitN(packed, "\n", 7)
	switch {
	case len(f) != 7 || !typeForm().MatchString(f[1]):
		return Entry{}, errors.New("not an entry of version 2: the expiry of a key, with 7 lines")
	case f[1] != string(presence.KeyExpired):
		return Entry{}, errNewer
	}
	n := numbers{}
	e := presence.Event{
		Type: presence.KeyExpired, Subject: presence.Subject{Key: f[6]},
		Body: presence.Body{
			Epoch: n.parse(f[2], 0), Reason: presence.ReasonExpired, DetectedAt: n.time(f[2]), Life: f[3], Generation: n.parse(f[4], 0),
		},
	}
	counter := n.parse(f[5], 0)
	if n.bad || e.Epoch <= 0 || e.Key == "" || !utf8.ValidString(e.Key) {
		return Entry{}, errors.New("a number or the key cannot be read")
	}
	e.ID = presence.KeyEventID(e.Key, e.Epoch, counter)
	e.Traceparent = presence.TraceparentOf(e.ID)
	return Entry{N: counter, Event: e}, nil
}

func (n *numbers) time(s string) time.Time {
	if s == "" {
		return time.Time{}
	}
	t := time.UnixMilli(n.parse(s, 0)).UTC()
	if t.Year() < 0 || t.Year() > 9999 {
		n.bad = true // no JSON can hold it
	}
	return t
}
