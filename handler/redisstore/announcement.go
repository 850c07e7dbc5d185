package redisstore

import (
	"context"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/push"
)

// announcements are what Redis tells of maintenance to a connection that asked for it.
var announcements = []string{"MOVING", "MIGRATING", "MIGRATED", "FAILING_OVER", "FAILED_OVER", "SMIGRATING", "SMIGRATED"}

// askForAnnouncements asks on each new connection for commands. Servers that have no announcements refuse.
func askForAnnouncements(ctx context.Context, conn *redis.Conn) error {
	if ctx.Value(oneDial{}) != nil {
		return nil // they are not for subscriptions
	}
	// Where a server moves to it need not say: its name leads there.
	if err := conn.ClientMaintNotifications(ctx, true, "none").Err(); err != nil && !isReply(err) {
		return err
	}
	return nil
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
