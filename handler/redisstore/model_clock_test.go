package redisstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// stillClock holds the time of the scripts still, so that a model can tell to the millisecond what they do.
// It is a hook of the Redis client: it puts, into the same round trip, a command in front of each script that
// sets the test-only offset such that the script's time is now, and one behind it that shows whether
// Redis's own clock went on in between. It also makes the faults that come from Redis. It serves one
// goroutine, and round trips of one script.
type stillClock struct {
	// now is the time that the next script gets, in ms.
	now int64
	// ages, when set, are the ages of the next script's items in ms. The real ones may be a little higher.
	ages []int64
	// refuse names a setting with which Redis refuses the next script's writes, "" for none.
	refuse string
	// lose drops the reply of the next script.
	lose bool
	// low and high bound the time that the last script had.
	low, high int64
}

// The settings that make Redis refuse writes, with the value that does and the one that does not.
var refusals = map[string][2]string{
	"maxmemory":             {"1", "0"},
	"min-replicas-to-write": {"1", "0"},
}

var errReplyLost = errors.New("the reply was lost")

// setClock sets the offset of the partition's time. It waits until the clock of Redis will stand at the same
// millisecond for a while, so that the script which follows has the time that was meant.
const setClock = `
local t
for _ = 1, 500 do
  t = redis.call('TIME')
  if t[2] % 1000 < 700 then break end
end
local ms = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], 'offset', string.format('%.0f', ARGV[1] - ms))
return ms`

func (c *stillClock) DialHook(next redis.DialHook) redis.DialHook          { return next }
func (c *stillClock) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

func (c *stillClock) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		if cmds[0].Name() != "evalsha" {
			return next(ctx, cmds)
		}
		script := cmds[0]
		fail := func(err error) error {
			script.SetErr(fmt.Errorf("hold the clock: %w", err))
			return script.Err()
		}
		if len(cmds) != 1 {
			return fail(fmt.Errorf("%d scripts in one round trip", len(cmds)))
		}
		if err := c.pinAges(script.Args()); err != nil {
			return fail(err)
		}
		meta := script.Args()[3]
		before := redis.NewCmd(ctx, "eval", setClock, 1, meta, c.now)
		after := redis.NewTimeCmd(ctx, "time")
		batch := []redis.Cmder{before, script, after}
		if r, ok := refusals[c.refuse]; ok {
			batch = []redis.Cmder{before, redis.NewStatusCmd(ctx, "config", "set", c.refuse, r[0]), script,
				redis.NewStatusCmd(ctx, "config", "set", c.refuse, r[1]), after}
		}
		_ = next(ctx, batch) // each command has its own error
		if redis.HasErrorPrefix(script.Err(), "NOSCRIPT") {
			return script.Err() // it will be loaded and sent again
		}
		for _, cmd := range batch {
			if cmd != script && cmd.Err() != nil {
				return fail(cmd.Err())
			}
		}
		began, err := before.Int64()
		if err != nil {
			return fail(err)
		}
		c.low, c.high = c.now, c.now+after.Val().UnixMilli()-began
		if c.lose {
			script.SetErr(errReplyLost)
		}
		c.ages, c.refuse, c.lose = nil, "", false
		return script.Err()
	}
}

// pinAges makes the ages in a script's arguments those that were meant: the time between making an item and
// sending it is no part of the scenario.
func (c *stillClock) pinAges(args []any) error {
	perItem, at := 0, 0
	switch args[1] {
	case heartbeatScript.Hash():
		perItem, at = 9, 4
	case leaveScript.Hash():
		perItem, at = 5, 2
	default:
		return nil
	}
	items := args[3+args[2].(int)+2:]
	if len(items) != perItem*len(c.ages) {
		return fmt.Errorf("%d arguments for %d items", len(items), len(c.ages))
	}
	for i, age := range c.ages {
		sent := &items[i*perItem+at]
		if real := (*sent).(int64); real < age || real > age+commandTimeout.Milliseconds() {
			return fmt.Errorf("item %d is sent with an age of %d ms, it is %d ms old", i, real, age)
		}
		*sent = age
	}
	return nil
}
