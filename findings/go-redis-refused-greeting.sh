#!/bin/sh
# Library: github.com/redis/go-redis/v9 9.23.0, with redis-server from the PATH.
# A pipeline needs a new connection, and the server refuses its greeting (here: the user's password was changed).
# Expected: the pipeline's Exec has the error, and so has each of its commands, as with a single command.
# Seen: Exec has the error, but each command has neither an error nor a value: cmd.Result() is ("", nil), which looks
# like an answer. A program that reads the commands, as one does to tell their errors apart, takes it for one.
# Ends with 0 while that is so, with 1 when it has changed.
set -eu
dir=$(mktemp -d)
pid=
trap '[ -z "$pid" ] || kill "$pid"; chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
cd "$dir"
port=${PORT:-17391}
redis-server --bind 127.0.0.1 --port "$port" --save '' --dir "$dir" --loglevel warning >server.log 2>&1 &
pid=$!
cat >go.mod <<'MOD'
module finding

go 1.24

require github.com/redis/go-redis/v9 v9.23.0
MOD
cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	admin := redis.NewClient(&redis.Options{Addr: os.Args[1], MaxRetries: 50})
	must(admin.Do(ctx, "acl", "setuser", "app", "reset", "on", ">old", "~*", "+@all").Err())
	app := redis.NewClient(&redis.Options{Addr: os.Args[1], Username: "app", Password: "old", PoolSize: 1, MaxRetries: -1, PipelinePoolSize: -1})
	must(app.Set(ctx, "key", "value", 0).Err())
	must(admin.Do(ctx, "acl", "setuser", "app", "resetpass", ">new").Err())
	must(admin.Do(ctx, "client", "kill", "user", "app").Err())

	pipe := app.Pipeline()
	first, second := pipe.Get(ctx, "key"), pipe.Get(ctx, "key")
	_, err := pipe.Exec(ctx)
	_, single := app.Get(ctx, "key").Result()
	fmt.Printf("go-redis %s\nExec:            %v\nfirst command:   %q, %v\nsecond command:  %q, %v\nsingle command:  %v\n",
		redis.Version(), err, first.Val(), first.Err(), second.Val(), second.Err(), single)
	if err == nil || first.Err() != nil || second.Err() != nil {
		fmt.Println("it has changed")
		os.Exit(1)
	}
	fmt.Println("as found: the commands have neither an error nor a value")
}

func must(err error) {
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}
GO
export GOFLAGS=-mod=mod GOWORK=off
go mod tidy >tidy.log 2>&1 || { cat tidy.log; exit 1; }
go run . "127.0.0.1:$port"
