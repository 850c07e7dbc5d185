package redisstore

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// rig is a hook of the Redis client that takes chance out of what a model is compared with. The scripts run as
// they are, with stillTime in front of each: the clock of Redis stands, and only the test-only offset moves
// the time. It also makes faults. It serves one goroutine.
type rig struct {
	// refuse names a setting with which Redis refuses the scripts' writes, "" for none.
	refuse string
	// lose drops the reply of the last script of the next call.
	lose bool
	// full says that heartbeat.lua will be the last one: a beat of the call has groups or meta.
	full bool
	// cut makes lose drop the reply of renew.lua, so that heartbeat.lua does not follow; renewed are its answers.
	cut     bool
	renewed []string
	// short and long count the beats that renew.lua did, and those that were left to heartbeat.lua.
	short, long int
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

// hash is the name by which Redis knows a script.
func hash(src string) string {
	sum := sha1.Sum([]byte(src))
	return hex.EncodeToString(sum[:])
}

// stillHashes are the names of the scripts with stillTime in front, by the names of those without.
var stillHashes = func() map[string]string {
	hashes := map[string]string{}
	for _, src := range []string{renewPrelude + renewLua, statePrelude + heartbeatLua, statePrelude + leaveLua, partitionPrelude + dueLua, statePrelude + claimLua, viewLua} {
		hashes[hash(src)] = hash(stillTime + src)
	}
	return hashes
}()

func (r *rig) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook puts stillTime in front of a script that is loaded.
func (r *rig) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		load, ok := cmd.(*redis.StringCmd)
		if !ok || cmd.Name() != "script" {
			return next(ctx, cmd)
		}
		args := cmd.Args()
		src := args[2].(string)
		args[2] = stillTime + src
		err := next(ctx, cmd)
		load.SetVal(hash(src)) // the script's name for other tests
		return err
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
		leavesSome := r.renewal(script)
		if r.lose && (r.cut || !leavesSome) {
			r.lose, r.cut = false, r.cut && leavesSome
			script.SetErr(errReplyLost)
		}
		return script.Err()
	}
}

// renewal keeps what renew.lua answers. It reports whether the script is that one, and heartbeat.lua follows.
func (r *rig) renewal(script redis.Cmder) bool {
	if script.Args()[1] != stillHashes[renewScript.Hash()] {
		return false
	}
	r.renewed = nil
	if text, err := script.(*redis.Cmd).Text(); err == nil {
		r.renewed = strings.Split(text, "\n")[2:] // after the time and the offset of the model's one partition
	}
	for _, answer := range r.renewed {
		if answer == "" {
			r.long++
		} else {
			r.short++
		}
	}
	return r.full || slices.Contains(r.renewed, "")
}

// prepare puts the script with stillTime in its place.
func (r *rig) prepare(args []any, commands int) error {
	name := args[1].(string)
	still, ok := stillHashes[name]
	if !ok || commands != 1 {
		return fmt.Errorf("%d commands with script %s: want one of the known ones", commands, name)
	}
	args[1] = still
	return nil
}
