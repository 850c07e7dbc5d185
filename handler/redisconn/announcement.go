package redisconn

import (
	"context"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/push"
)

// announcements are what Redis tells of maintenance to a connection that asked for it.
var announcements = []string{"MOVING", "MIGRATING", "MIGRATED", "FAILING_OVER", "FAILED_OVER", "SMIGRATING", "SMIGRATED"}

// introduce tells a new connection our name and, where it is for commands, asks for announcements: the end of the
// greeting. Servers that have none refuse, as do those whose user may not set a name.
func (c *Client) introduce(node string) func(context.Context, *redis.Conn) error {
	return func(ctx context.Context, conn *redis.Conn) error {
		subscription := ctx.Value(oneDial{}) != nil
		var now *redis.TimeCmd
		sent := time.Now()
		_, err := conn.Pipelined(ctx, func(pipe redis.Pipeliner) error {
			pipe.ClientSetName(ctx, c.name)
			if subscription {
				return nil
			}
			if !c.endpoint.Unannounced {
				// Where a server moves to it need not say: its name leads there.
				pipe.ClientMaintNotifications(ctx, true, "none")
			}
			now = pipe.Time(ctx)
			return nil
		})
		if err != nil && !isReply(err) {
			return err
		}
		if now != nil {
			// Where TIME is refused, the scripts cannot ask for it either, and tell why.
			if t, err := now.Result(); err == nil {
				c.clock(node).Learn(t, time.Microsecond, sent, time.Now())
			}
		}
		if g := greetingOf(ctx); g != nil {
			g.done = time.Now()
		}
		return nil
	}
}

// announced takes the announcements of one server.
type announced struct {
	client *Client
	node   string
}

// HandlePushNotification is called while a reply is read, so it must be quick.
func (a announced) HandlePushNotification(_ context.Context, _ push.NotificationHandlerContext, notification []any) error {
	a.client.circuit.Announced(a.node, notification)
	if l := a.client.live.Load(); l != nil && l.cluster != nil {
		l.cluster.mayHaveChanged() // slots move
	}
	return nil
}
