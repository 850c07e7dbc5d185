package redisstore

import (
	"time"

	"userconnectivity/handler/presence"
)

// ScriptCall is one call of a script with everything that it takes, so that any client of Redis can make it.
// cmd/bench measures the store against clients that do no more than that.
type ScriptCall struct {
	// Text is the whole script.
	Text string
	Keys []string
	Args []any
}

// The texts of two scripts, put together once.
var (
	renewText     = clockLua + renewLua
	heartbeatText = clockLua + stateLua + heartbeatLua
)

// RenewCall returns the call of the script that renews live sessions, for beats of users of one partition: that
// of the first. Keys has the partition's deadline index at 1 and its outbox at 2; from 4 on, user record and
// lease of each beat.
func (s *Store) RenewCall(beats []presence.Beat) ScriptCall {
	c := s.scriptCall(renewText, beats, 7)
	for i := range beats {
		it := s.prepared(&beats[i])
		c.Keys = append(c.Keys, it.userKey, it.leaseKey)
		c.Args = append(c.Args, it.name, it.member, it.ttl, it.grace, it.age, it.left, it.seq)
	}
	return c
}

// HeartbeatCall is the same for the script that applies any beat. ReadHeartbeat reads its answers.
func (s *Store) HeartbeatCall(beats []presence.Beat) ScriptCall {
	c := s.scriptCall(heartbeatText, beats, 9)
	for i := range beats {
		it := s.prepared(&beats[i])
		c.Keys = append(c.Keys, it.userKey, it.leaseKey)
		c.Args = append(c.Args, it.beat.User, it.beat.Session, it.ttlSeconds, it.graceSeconds, it.age,
			it.seq, it.groups, it.meta, it.beat.Traceparent)
	}
	return c
}

// ReadHeartbeat reads what the script of HeartbeatCall answered to one beat.
func ReadHeartbeat(answer string) (presence.BeatOutcome, error) { return beatOutcome(answer) }

// scriptCall begins a call, with room for the keys and arguments of the beats.
func (s *Store) scriptCall(text string, beats []presence.Beat, argsPerBeat int) ScriptCall {
	shared := s.shared[s.keys.partition(beats[0].User)]
	c := ScriptCall{Text: text, Keys: make([]string, 0, len(shared)+2*len(beats)), Args: make([]any, 0, len(s.args)+argsPerBeat*len(beats))}
	for _, key := range shared {
		c.Keys = append(c.Keys, key.(string))
	}
	c.Args = append(c.Args, s.args[:]...)
	return c
}

func (s *Store) prepared(b *presence.Beat) *beatItem {
	it := &beatItem{beat: *b}
	it.prepare(s, time.Now())
	return it
}
