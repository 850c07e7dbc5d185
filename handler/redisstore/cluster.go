package redisstore

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// once is a hook of a cluster's client: no command is sent again after its connection broke. It may have been run, and
// an answer to its second run would not be true of the first. MOVED and ASK are followed: a command that is refused
// with them was not run.
type once struct{}

// onceCmd is a command that is not sent again.
type onceCmd struct{ redis.Cmder }

func (onceCmd) NoRetry() bool { return true }

func (once) DialHook(next redis.DialHook) redis.DialHook { return next }

func (once) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return next(ctx, onceCmd{cmd}) }
}

func (once) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		wrapped := make([]redis.Cmder, len(cmds))
		for i, cmd := range cmds {
			wrapped[i] = onceCmd{cmd}
		}
		return next(ctx, wrapped)
	}
}
