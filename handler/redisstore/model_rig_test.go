package redisstore

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// rig is a hook of the Redis client that takes chance out of what a model is compared with. The scripts run as
// they are, with stillTime in front of each: the clock of Redis stands, and only the test-only offset moves
// the time. It also makes faults. It serves one goroutine.
type rig struct {
	// ages, when set, are the ages of the next script's items in ms. The real ones may be a little higher.
	ages []int64
	// refuse names a setting with which Redis refuses the next script's writes, "" for none.
	refuse string
	// lose drops the reply of the next script.
	lose bool
}

// stillTime answers TIME always alike, at stillAt.
const stillTime = `
local real = redis
local redis = setmetatable({ call = function(command, ...)
  if command == 'TIME' then return { '1700000000', '123456' } end
  return real.call(command, ...)
end }, { __index = real })
`

var stillAt = time.Unix(1_700_000_000, 123_456_000).UnixMilli()

// The settings that make Redis refuse writes, with the value that does and the one that does not.
var refusals = map[string][2]string{
	"maxmemory":             {"1", "0"},
	"min-replicas-to-write": {"1", "0"},
}

var errReplyLost = errors.New("the reply was lost")

// stillHashes are the names of the scripts with stillTime in front, by the names of those without.
var stillHashes = func() map[string]string {
	hashes := map[string]string{}
	for src, script := range map[string]*redis.Script{
		stateLua + heartbeatLua: heartbeatScript, stateLua + leaveLua: leaveScript, stateLua + dueLua: dueScript,
		stateLua + claimLua: claimScript, viewLua: viewScript,
	} {
		sum := sha1.Sum([]byte(stillTime + src))
		hashes[script.Hash()] = hex.EncodeToString(sum[:])
	}
	return hashes
}()

func (r *rig) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook puts stillTime in front of a script that is loaded.
func (r *rig) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if args := cmd.Args(); cmd.Name() == "script" && args[1] == "load" {
			args[2] = stillTime + args[2].(string)
		}
		return next(ctx, cmd)
	}
}

// ProcessPipelineHook runs scripts with their time still, and makes the faults that were asked for.
func (r *rig) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		script := cmds[0]
		if script.Name() != "evalsha" {
			return next(ctx, cmds)
		}
		if err := r.prepare(script.Args(), len(cmds)); err != nil {
			script.SetErr(err)
			return err
		}
		if values, ok := refusals[r.refuse]; ok {
			on := redis.NewStatusCmd(ctx, "config", "set", r.refuse, values[0])
			off := redis.NewStatusCmd(ctx, "config", "set", r.refuse, values[1])
			cmds = []redis.Cmder{on, script, off}
		}
		_ = next(ctx, cmds) // each command has its own error
		if redis.HasErrorPrefix(script.Err(), "NOSCRIPT") {
			return script.Err() // it will be loaded and sent again
		}
		for _, cmd := range cmds {
			if cmd != script && cmd.Err() != nil {
				script.SetErr(fmt.Errorf("make a fault: %w", cmd.Err()))
			}
		}
		if r.lose {
			script.SetErr(errReplyLost)
		}
		*r = rig{}
		return script.Err()
	}
}

// prepare puts the script with stillTime in its place, and makes the ages in its arguments those that were
// meant: the time between making an item and sending it is no part of a scenario.
func (r *rig) prepare(args []any, commands int) error {
	name := args[1].(string)
	still, ok := stillHashes[name]
	if !ok || commands != 1 {
		return fmt.Errorf("%d commands with script %s: want one of the known ones", commands, name)
	}
	args[1] = still
	perItem, at := 0, 0
	switch name {
	case heartbeatScript.Hash():
		perItem, at = 9, 4
	case leaveScript.Hash():
		perItem, at = 5, 2
	default:
		return nil
	}
	items := args[3+args[2].(int)+2:]
	if len(items) != perItem*len(r.ages) {
		return fmt.Errorf("%d arguments for %d items", len(items), len(r.ages))
	}
	for i, age := range r.ages {
		sent := &items[i*perItem+at]
		if real := (*sent).(int64); real < age || real > age+time.Minute.Milliseconds() {
			return fmt.Errorf("item %d is sent with an age of %d ms, it is %d ms old", i, real, age)
		}
		*sent = age
	}
	return nil
}
