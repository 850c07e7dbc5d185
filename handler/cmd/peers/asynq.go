package main

import (
	"context"
	"io"
	"log"
	"time"

	"github.com/hibiken/asynq"
	"github.com/redis/go-redis/v9"
)

// asynqPeer is asynq's scheduled tasks: those that are due move to the pending list.
type asynqPeer struct {
	addr   string
	redis  *redis.Client
	client *asynq.Client
	at     time.Time // when all tasks are due
}

const (
	asynqScheduled = "asynq:{default}:scheduled"
	// forwardEvery is how often asynq looks for due tasks; it then moves all of them.
	forwardEvery = 10 * time.Millisecond
	// enqueuePatience is how long writing a task may take; it is many times what it takes.
	enqueuePatience = 100 * time.Microsecond
)

func (a *asynqPeer) close() {
	if a.client != nil {
		_ = a.client.Close() // the process ends
		_ = a.redis.Close()
	}
}

// makeDue schedules n tasks for the same second and waits until it has come.
func (a *asynqPeer) makeDue(ctx context.Context, n int) (int64, time.Duration, error) {
	a.redis = redis.NewClient(&redis.Options{Addr: a.addr})
	a.client = asynq.NewClientFromRedisClient(a.redis)
	a.at = time.Now().Add(5*time.Second + time.Duration(n)*enqueuePatience)
	count, took, err := each(n, func(user int) error {
		_, err := a.client.EnqueueContext(ctx, asynq.NewTask("offline", nil), asynq.TaskID(userID(user)), asynq.ProcessAt(a.at), asynq.MaxRetry(0))
		return err
	})
	if err == nil {
		time.Sleep(time.Until(a.at) + time.Second)
	}
	return count, took, err
}

// forward measures how long it takes until n due tasks are pending. One worker runs, which does not return: what is
// measured is the move alone.
func (a *asynqPeer) forward(ctx context.Context, n int) (int64, time.Duration, error) {
	stopped := make(chan struct{})
	server := asynq.NewServerFromRedisClient(a.redis, asynq.Config{
		Concurrency: 1, DelayedTaskCheckInterval: forwardEvery, LogLevel: asynq.FatalLevel, Logger: silent{log.New(io.Discard, "", 0)},
		ShutdownTimeout: time.Second,
	})
	began := time.Now()
	if err := server.Start(asynq.HandlerFunc(func(ctx context.Context, _ *asynq.Task) error {
		select {
		case <-stopped:
		case <-ctx.Done():
		}
		return nil
	})); err != nil {
		return 0, 0, err
	}
	err := until(ctx, func() (bool, error) {
		left, err := a.redis.ZCard(ctx, asynqScheduled).Result()
		return left == 0, err
	})
	took := time.Since(began)
	close(stopped)
	server.Shutdown()
	return int64(n), took, err
}

// silent takes asynq's own log lines.
type silent struct{ *log.Logger }

func (silent) Debug(...any) {}
func (silent) Info(...any)  {}
func (silent) Warn(...any)  {}
func (silent) Error(...any) {}
func (silent) Fatal(...any) {}
