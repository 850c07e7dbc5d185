package redisconn

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/redis/go-redis/v9"
)

// watch is a hook of the client of one server. It lets no round trip begin to a node of a cluster that must be left
// alone, has a connection opened first, tells of how each went, and sees to it that no command is without an error
// that has no answer.
type watch struct {
	client    *Client
	node      string
	patience  *patience
	connector *connector
}

// probing is in the context of a PING that asks whether a node is back.
type probing struct{}

func (w watch) DialHook(next redis.DialHook) redis.DialHook { return next }

func (w watch) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		if ctx.Value(probing{}) != nil {
			return w.connector.ping(ctx)
		}
		return w.ask(ctx, true, func(ctx context.Context) error { return next(ctx, cmd) })
	}
}

func (w watch) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		asked, transaction := within(cmds)
		unanswered(asked)
		// On a cluster go-redis itself sends a pipeline again whose connection could not be had.
		again := w.node == "" || transaction
		err := complete(asked, w.ask(ctx, again, func(ctx context.Context) error { return next(ctx, cmds) }, asked...))
		if transaction && isReply(err) {
			// Where MULTI itself is refused, go-redis may leave answers in the connection that the next command would read.
			w.client.sockets.closeThose(func(s *socket) bool { return s.commands && s.addr == w.connector.server.Options().Addr })
		}
		return err
	}
}

// ask makes one round trip, of the commands of a pipeline or of a single one. again says whether it may be made anew
// where nothing was sent.
func (w watch) ask(ctx context.Context, again bool, roundTrip func(context.Context) error, cmds ...redis.Cmder) error {
	if ctx.Value(oneDial{}) != nil {
		return roundTrip(ctx) // the greeting of a subscription
	}
	if g := greetingOf(ctx); g != nil {
		g.begun = true
		return roundTrip(ctx)
	}
	if k, ok := ctx.Value(attempting{}).(*connector); ok {
		return k.measure(ctx, roundTrip)
	}
	if w.node != "" { // for a single server that was asked before
		if err := w.client.readyFor(w.node); err != nil {
			return err
		}
	}
	joined, term, done := w.patience.join(ctx)
	defer done()
	sent, err := w.send(joined, again, roundTrip)
	if err != nil && term.Err() != nil && !isReply(err) {
		return giveUp(cmds...)
	}
	if !sent {
		return err // the attempt to connect has told of it
	}
	fault := err
	for _, cmd := range cmds {
		if !connectionFault(fault) && !errors.Is(cmd.Err(), errUnanswered) {
			fault = cmd.Err()
		}
	}
	w.client.returned(ctx, w.node, fault)
	return err
}

// send makes a round trip over the connection, and has one opened before where there is none. sent is false where
// that failed.
func (w watch) send(ctx context.Context, again bool, roundTrip func(context.Context) error) (sent bool, err error) {
	for range 3 {
		if !w.connector.stands.Load() {
			if err := w.connector.ping(ctx); err != nil {
				return false, err
			}
		}
		g := &greeting{}
		err = greeted(ctx, roundTrip, g)
		if err == nil || isReply(err) && !g.refused() {
			return true, err
		}
		w.connector.stands.Store(false)
		if !errors.Is(err, errNotConnected) {
			return true, err
		}
		if !again {
			break
		}
	}
	return false, err
}

func (k *connector) measure(ctx context.Context, roundTrip func(context.Context) error) error {
	g := &greeting{}
	err := greeted(ctx, roundTrip, g)
	if !g.done.IsZero() {
		k.trip.Store(int64(time.Since(g.done)))
	}
	return err
}

// greeted makes a round trip, and tells the refusal of a greeting from the answers to its commands.
func greeted(ctx context.Context, roundTrip func(context.Context) error, g *greeting) error {
	err := roundTrip(context.WithValue(ctx, greetingKey{}, g))
	if err != nil && g.refused() {
		return &refusedGreeting{err}
	}
	return err
}

var errUnanswered = errors.New("redis did not answer this command")

// within returns the commands that a pipeline was made of: those of a transaction are between others.
func within(cmds []redis.Cmder) (asked []redis.Cmder, transaction bool) {
	if len(cmds) > 0 && cmds[0].Name() == "asking" {
		cmds = cmds[1:]
	}
	if len(cmds) > 1 && cmds[0].Name() == "multi" {
		return cmds[1 : len(cmds)-1], true
	}
	return cmds, false
}

// unanswered gives commands an error that only an answer takes from them.
func unanswered(cmds []redis.Cmder) {
	for _, cmd := range cmds {
		cmd.SetErr(errUnanswered)
	}
}

// complete gives commands without an answer the error of their pipeline. go-redis returns some from the pipeline alone.
func complete(cmds []redis.Cmder, err error) error {
	for _, cmd := range cmds {
		if cmd.Err() == errUnanswered { //nolint:errorlint // it is never wrapped
			err = cmp.Or(err, errUnanswered)
			cmd.SetErr(err)
		}
	}
	return err
}
