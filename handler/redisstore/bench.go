package redisstore

import (
	"userconnectivity/handler/presence"
)

// ScriptCall is one call of a script with everything that it takes, so that any client of Redis can make it.
// cmd/bench measures the store against clients that do no more than that. Beats are dated by when the script runs.
type ScriptCall struct {
	// Text is the whole script.
	Text string
	Keys []string
	Args []any
}

// The texts of two scripts, put together once.
var (
	renewText     = renewPrelude + renewLua
	heartbeatText = statePrelude + heartbeatLua
)

// RenewCall returns the call of the script that renews live sessions, for beats of users of any partitions.
func (s *Store) RenewCall(beats []presence.Beat) ScriptCall {
	items := make([]*beatItem, len(beats))
	for i := range beats {
		items[i] = s.prepared(&beats[i])
	}
	for _, it := range items {
		it.at = whenRun
	}
	c := renewal{chunks: chunksOf(items, s.keys.partitions, func(it *beatItem) int { return it.partition })}
	c.Call = s.renewalCall(c.chunks, len(items), 0)
	call := ScriptCall{Text: renewText}
	for _, key := range c.Keys {
		call.Keys = append(call.Keys, valueOf(key).(string))
	}
	for _, arg := range c.Args {
		call.Args = append(call.Args, valueOf(arg))
	}
	return call
}

// JoinRenewCalls returns one call that does what several of RenewCall do, each of which has beats of one partition.
func JoinRenewCalls(calls []ScriptCall) ScriptCall {
	const shared, leading = 2, 3 // keys of a partition, and arguments before how many beats it has
	all := ScriptCall{Text: calls[0].Text, Args: append(calls[0].Args[:leading-1:leading-1], len(calls))}
	for _, c := range calls {
		all.Keys, all.Args = append(all.Keys, c.Keys[:shared]...), append(all.Args, c.Args[leading])
	}
	for _, c := range calls {
		all.Keys, all.Args = append(all.Keys, c.Keys[shared:]...), append(all.Args, c.Args[leading+1:]...)
	}
	return all
}

// valueOf returns what a key or argument of a call is, or points to.
func valueOf(v any) any {
	switch v := v.(type) {
	case *string:
		return *v
	case *int64:
		return *v
	case *renewalArg:
		text, _ := v.MarshalBinary() // it never fails
		return string(text)
	}
	return v
}

// whenRun stands for the time at which a script runs: it takes no later one.
const whenRun int64 = -10_000_000_000_000

// OutboxKey returns the key of the outbox of a user's partition.
func (s *Store) OutboxKey(user string) string { return s.keys.outbox(s.keys.partition(user)) }

// LeaseKey returns the key of a session's lease.
func (s *Store) LeaseKey(user, session string) string {
	return s.keys.lease(s.keys.partition(user), user, session)
}

// HeartbeatCall returns the call of the script that applies any beat, for users of one partition: that of the first.
// ReadHeartbeat reads its answers.
func (s *Store) HeartbeatCall(beats []presence.Beat) ScriptCall {
	c := s.scriptCall(heartbeatText, beats, 9)
	c.Args = append(c.Args, 0)
	for i := range beats {
		it := s.prepared(&beats[i])
		c.Keys = append(c.Keys, it.userKey, s.LeaseKey(it.beat.User, it.beat.Session))
		c.Args = append(c.Args, it.beat.User, it.beat.Session, it.ttlSeconds, it.graceSeconds, whenRun,
			it.seq, it.groups, it.meta, it.beat.Traceparent)
	}
	return c
}

// ReadHeartbeat reads what the script of HeartbeatCall answered to one beat.
func ReadHeartbeat(answer string) (presence.BeatOutcome, error) { return beatOutcome(answer) }

// scriptCall begins a call, with room for the keys and arguments of the beats.
func (s *Store) scriptCall(text string, beats []presence.Beat, argsPerBeat int) ScriptCall {
	shared := s.shared[s.keys.partition(beats[0].User)]
	c := ScriptCall{Text: text, Keys: make([]string, 0, len(shared)+2*len(beats)), Args: make([]any, 0, len(s.args)+1+argsPerBeat*len(beats))}
	for _, key := range shared {
		c.Keys = append(c.Keys, key.(string))
	}
	c.Args = append(c.Args, s.args[:]...)
	return c
}

func (s *Store) prepared(b *presence.Beat) *beatItem {
	it := &beatItem{beat: *b}
	it.prepare(s)
	return it
}
