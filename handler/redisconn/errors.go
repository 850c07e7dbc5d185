package redisconn

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/fault"
)

// replyKinds are what Redis answers instead of doing what it is asked, by the first word of the answer. Those inside of
// scripts are found by the same word; see Code.
var replyKinds = map[string]struct {
	// message is for whoever sent the request, cure for whoever runs the app, "" where Redis's words say enough. A %s in
	// a cure stands for the setting that names the server.
	message, cure string
	// nobody says that the server serves nobody as it is: that is a fault of its connection, and its circuit opens.
	nobody bool
	// lasting says that it does not end by itself.
	lasting bool
}{
	"OOM": {
		message: "the state store is full",
		cure:    "redis is full, and refuses writes; raise maxmemory or choose a larger tier, or remove keys of others from it",
	},
	"MISCONF": {
		cure: "redis refuses writes because it cannot save to its disk; look into its log, free the disk, or switch that off with: CONFIG SET stop-writes-on-bgsave-error no",
	},
	"NOREPLICAS": {
		cure: "redis refuses writes because it has too few replicas that keep up; bring them back, or lower min-replicas-to-write",
	},
	"READONLY": {nobody: true, cure: "%s names a read-only replica; name the primary"},
	"LOADING":  {nobody: true, cure: "redis is reading its data from disk, and serves when that is done"},
	"MASTERDOWN": {
		nobody: true, cure: "%s names a replica that has lost its primary; name the primary",
	},
	"BUSY": {nobody: true, cure: "redis runs a script of another client that does not end; end it with SCRIPT KILL"},
	"NOPERM": {
		lasting: true,
		cure:    "the app's user in Redis lacks a permission; docs/deploy.md has the exact rights for ACL SETUSER, of keys, commands and channels (or ~* &* +@all; Azure Managed Redis: access policy default)",
	},
	"WRONGPASS":   {nobody: true, lasting: true},
	"NOAUTH":      {nobody: true, lasting: true},
	"CLUSTERDOWN": {cure: "the cluster does not serve all slots; a primary is down without a replica that took over, or slots are not assigned (CLUSTER INFO)"},
	"TRYAGAIN":    {},
	"MOVED":       {lasting: true, cure: "%s names a node of a cluster whose slots may not be read; grant +cluster|slots to its user"},
	"CROSSSLOT":   {lasting: true, cure: "%s names a node of a cluster whose slots may not be read; grant +cluster|slots to its user"},
	"maxclients":  {nobody: true, cure: "redis has no connection left; lower MAX_INSTANCES, or choose a larger tier"},
}

// Code is the first word of what Redis answered, also where a script was refused something in the middle: from Redis 7
// on a script's error has the same word in front, before that it is inside of other words. "" is no answer of Redis.
// A server without a connection left says so without a word of its own: maxclients.
func Code(err error) string {
	if errors.Is(err, errNoConnectionLeft) {
		return "maxclients"
	}
	var reply redis.Error
	if !errors.As(err, &reply) {
		return ""
	}
	text := reply.Error()
	word, _, _ := strings.Cut(text, " ")
	if word != "ERR" {
		return word
	}
	switch {
	case strings.HasPrefix(text, "ERR max number of clients"):
		return "maxclients"
	case strings.Contains(text, "ACL failure in script"), strings.Contains(text, "can't run this command or subcommand"),
		strings.Contains(text, "can't access at least one of the keys"):
		return "NOPERM"
	}
	if strings.HasPrefix(text, "ERR Error running script") {
		// ERR Error running script (call to f_<sha>): @user_script:7: @user_script: 7: -OOM command not allowed ...
		if _, inner, ok := strings.Cut(text, ": -"); ok {
			word, _, _ = strings.Cut(inner, " ")
		}
	}
	return word
}

// isReply reports whether err is an answer of Redis, so that the connection is well.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

// connectionFault reports whether err tells of the connection or the server rather than of a command.
func connectionFault(err error) bool {
	switch word := Code(err); {
	case err == nil:
		return false
	case errors.As(err, new(*refusedGreeting)):
		return true
	case word != "":
		return replyKinds[word].nobody
	}
	return !errors.Is(err, context.Canceled)
}

// cureOf says what mends a refusal, "" where that is not known or Redis's own words say it.
func cureOf(err error, setting string) string {
	return strings.ReplaceAll(replyKinds[Code(err)].cure, "%s", setting)
}

// Unavailable is what every fault of Redis becomes: a *fault.Error of the kind Unavailable, as nothing is lost by
// waiting. The cause, with the cure where one is known, is for the log and for health; see Cause. An error that is a
// *fault.Error already stays as it is.
func Unavailable(err error) error {
	var e *fault.Error
	if errors.As(err, &e) {
		return err
	}
	answer := replyKinds[Code(err)]
	message := "the state store cannot be reached: try again"
	switch {
	case answer.message != "":
		message = answer.message + ": try again later"
	case answer.lasting:
		message = "the state store refuses this app; health says why"
	case answer.cure != "" && !answer.nobody:
		message = "the state store refuses writes for now: try again"
	}
	if cure := cureOf(err, "REDIS_URL or REDIS_HOST"); cure != "" && !errors.As(err, new(*diagnosis)) {
		err = &diagnosis{cure, err}
	}
	return &fault.Error{Kind: fault.Unavailable, Message: message, RetryAfter: time.Second, Err: err}
}

// refusal is an answer of Redis that does not become another by itself, such as that of a right that is missing.
type refusal struct {
	at  time.Time
	err error
}

// Unavailable is the function of that name for the answer to a command, and remembers for Refused what does not end by itself: no look at
// Redis may find it, since the rights to each command and key are their own.
func (c *Client) Unavailable(err error) error {
	err = Unavailable(err)
	if replyKinds[Code(err)].lasting {
		c.refusal.Store(&refusal{time.Now(), err})
	}
	return err
}

// Refused returns why Redis refused something of late that it will refuse again, with the cure; nil for nothing in so
// much time.
func (c *Client) Refused(within time.Duration) error {
	if r := c.refusal.Load(); r != nil && time.Since(r.at) < within {
		return Cause(r.err)
	}
	return nil
}

// Cause returns what is behind an error of Unavailable, without the words that are for those who call the app.
func Cause(err error) error {
	if e := (*fault.Error)(nil); errors.As(err, &e) && e.Err != nil {
		return e.Err
	}
	return err
}
