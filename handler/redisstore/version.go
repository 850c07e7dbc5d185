package redisstore

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"userconnectivity/handler/presence"
)

// Two versions run side by side in every deploy. What a later version writes is no junk: it stays as it is and waits for
// a process of that version, and everything else goes on. lua/record.lua says what a later version may do to a user
// record; this file has the same rules for what is read in Go.

// laterRecord reports whether a user record is one that only a later version may read and change: it begins with a letter
// from b to z, before a digit, a comma, a line end or nothing.
func laterRecord(record string) bool {
	if record == "" || record[0] < 'b' || record[0] > 'z' {
		return false
	}
	return len(record) == 1 || isDigit(record[1]) || record[1] == ',' || record[1] == '\n'
}

// laterLine reports whether a line of a user record is of a kind that a later version has added: it begins with a visible
// ASCII character that begins no line of ours, and is neither digit nor comma.
func laterLine(line string) bool {
	c := line[0]
	return c > ' ' && c <= '~' && !isDigit(c) && c != ',' && c != '+' && c != '~' && c != '-'
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// laterMember reports whether a member of the deadline index names something that only a later version knows: it is of
// visible ASCII characters with a slash among them and none at its end, and is not <user>/<session> with two ids.
func laterMember(m string) bool {
	visible := func(c rune) bool { return c > ' ' && c <= '~' }
	if !strings.Contains(m, "/") || strings.HasSuffix(m, "/") || strings.ContainsFunc(m, func(c rune) bool { return !visible(c) }) {
		return false
	}
	user, session, ok := cutMember(m)
	return !ok || presence.CheckID(user) != "" || presence.CheckID(session) != ""
}

// splitMeta cuts a live line's meta from the fields that a later version has put behind it.
func splitMeta(text string) (meta, more string) {
	if strings.HasPrefix(text, ",") {
		return "", text
	}
	if !strings.Contains(text, "},") {
		return text, ""
	}
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{':
			depth++
		case c == '}':
			if depth--; depth > 0 {
				continue
			}
			if more := text[i+1:]; more != "" && more[0] != ',' {
				return text, ""
			}
			return text[:i+1], text[i+1:]
		}
	}
	return text, ""
}

// Later counts what only a process of a later version can go on with.
type Later struct {
	// Refused counts the beats and leaves that were refused for now, and Unread the users who could not be read, since
	// the process began.
	Refused, Unread int64
	// Waiting is how many entries of the deadline index wait, as far as the sweep of this process has found.
	Waiting int
}

// later keeps the counts, and passes over what waits at the begin of a deadline index: else the same entries would be
// found again and again, and hide what comes after them.
type later struct {
	log             *slog.Logger
	once            sync.Once
	refused, unread atomic.Int64

	mu     sync.Mutex
	passed []passed // by partition
}

// passed says how many of a partition's first due entries are passed over, and when all are looked at again.
type passed struct {
	n     int
	again time.Time
}

// laterAgain is after what time entries of a later version are looked at again. Until then the count of them may be wrong
// where another process has ended some: then as many others are found late.
const laterAgain = 5 * time.Second

// Later returns the counts.
func (s *Store) Later() Later {
	l := &s.later
	l.mu.Lock()
	defer l.mu.Unlock()
	sum := Later{Refused: l.refused.Load(), Unread: l.unread.Load()}
	for _, p := range l.passed {
		sum.Waiting += p.n
	}
	return sum
}

// Warnings tells what waits for a process of a later version.
func (s *Store) Warnings() []string {
	n := s.Later().Waiting
	if n == 0 {
		return nil
	}
	return []string{fmt.Sprintf("%d deadlines that are due are of a form that this version does not know; they wait for a process of the version that wrote them: "+
		"finish the roll-out, or go forward to that version again", n)}
}

// tell logs the first time that something of a later version is met.
func (l *later) tell(what string) {
	l.once.Do(func() {
		if l.log != nil {
			l.log.WarnContext(context.Background(), "the state has something of a later version: it stays as it is, and waits until this process is replaced by that version too", "first", what)
		}
	})
}

// pass returns how many of a partition's first due entries are passed over now.
func (l *later) pass(partition int, now time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.passed[partition]
	if p.n > 0 && now.After(p.again) {
		p.n = 0
	}
	return p.n
}

// found takes in that n more of the due entries wait.
func (l *later) found(partition, n int, now time.Time) {
	if n == 0 {
		return
	}
	l.tell("an entry of the deadline index")
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &l.passed[partition]
	if p.n == 0 {
		p.again = now.Add(laterAgain)
	}
	p.n += n
}
