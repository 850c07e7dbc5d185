package redisconn

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// Call is one run of a script. Keys and Args may be pointers: go-redis writes what they point to.
type Call struct {
	Script     *redis.Script
	Keys, Args []any
	// Dating is that of a call with items that are dated: it is one of Args, and the answers end with the server's time.
	Dating *Dating
	// Cmd has the answer after Client.Run, and Err why there is none: one of Unavailable. A call with an error may or may
	// not have been run: every script may be run again.
	Cmd *redis.Cmd
	Err error
}

// command makes the EVALSHA of the call.
func (c *Call) command(ctx context.Context) *redis.Cmd {
	args := make([]any, 0, 3+len(c.Keys)+len(c.Args))
	args = append(args, "evalsha", c.Script.Hash(), len(c.Keys))
	args = append(args, c.Keys...)
	c.Cmd = redis.NewCmd(ctx, append(args, c.Args...)...)
	return c.Cmd
}

// Replies returns the script's answers, one for each of n items.
func (c *Call) Replies(n int) ([]any, error) {
	if c.Err != nil {
		return nil, c.Err
	}
	replies, err := c.Cmd.Slice()
	if err != nil {
		return nil, err
	}
	if len(replies) != n {
		return nil, fmt.Errorf("%d answers to %d items", len(replies), n)
	}
	return replies, nil
}

// DatedReplies is Replies for a call with a Dating, which learns from the server's time at their end.
func (c *Call) DatedReplies(n int) ([]any, error) {
	replies, err := c.Replies(n + 1)
	if err != nil {
		return nil, err
	}
	now, ok := replies[n].(int64)
	if !ok {
		return nil, fmt.Errorf("%v instead of the server's time", replies[n])
	}
	c.Dating.Learn(now)
	return replies[:n], nil
}

// Run sends the calls in one round trip. A script that the server does not know yet is loaded and only the
// calls that were refused for it are sent again: those had not begun. Each call has its own error, since on a cluster
// one slot may be on the move while others are served; Run returns the first of them.
func (c *Client) Run(ctx context.Context, calls ...*Call) error {
	if len(calls) == 0 {
		return nil
	}
	client, err := c.Connect(ctx)
	for _, call := range calls {
		call.Err = err
	}
	if err != nil {
		return err
	}
	pending := calls
	for range 3 {
		pipe := client.Pipeline()
		for _, call := range pending {
			_ = pipe.Process(ctx, call.command(ctx)) // queues it
		}
		Exec(ctx, pipe)
		var unknown []*Call
		for _, call := range pending {
			switch err := call.Cmd.Err(); {
			case err == nil || errors.Is(err, redis.Nil):
				call.Err = nil
			case redis.HasErrorPrefix(err, "NOSCRIPT"):
				call.Err = Unavailable(errForgetful)
				unknown = append(unknown, call)
			default:
				if redis.HasErrorPrefix(err, "CROSSSLOT") {
					c.apart.Store(true) // one address, and a cluster behind it
				}
				call.Err = c.Unavailable(err)
			}
		}
		if pending = load(ctx, client, unknown); len(pending) == 0 {
			break
		}
	}
	for _, call := range calls {
		if call.Err != nil {
			return call.Err
		}
	}
	return nil
}

var errForgetful = errors.New("the server forgets its scripts as fast as they are loaded")

// load has the servers of the calls load their scripts, and returns the calls that may be sent again.
func load(ctx context.Context, client redis.UniversalClient, calls []*Call) (loaded []*Call) {
	type place struct {
		server redis.Scripter
		script *redis.Script
	}
	done := map[place]error{}
	for _, c := range calls {
		at := place{client, c.Script}
		var err error
		if cluster, ok := client.(*live).UniversalClient.(*redis.ClusterClient); ok {
			at.server, err = cluster.MasterForKey(ctx, c.Keys[0].(string))
		}
		if _, tried := done[at]; !tried && err == nil {
			done[at] = c.Script.Load(ctx, at.server).Err()
		}
		if err = cmp.Or(err, done[at]); err != nil {
			c.Err = Unavailable(fmt.Errorf("load a script: %w", err))
			continue
		}
		loaded = append(loaded, c)
	}
	return loaded
}
