// Command localhost runs the staged function app on this machine: a small stand-in for the Azure Functions host,
// with embedded queues and a Redis of its own. See package localhost for what it is and is not.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"userconnectivity/handler/localhost"
)

func main() {
	err := run(os.Args[1:], os.Environ(), os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "localhost:", err)
		os.Exit(1)
	}
}

func run(args, environ []string, stdout, stderr *os.File) error {
	options := localhost.Options{Environ: environ, Stdout: stdout, HandlerStdout: stdout, HandlerStderr: stderr}
	port, err := strconv.Atoi(cmp.Or(os.Getenv("PORT"), "7071"))
	if err != nil {
		return fmt.Errorf("PORT=%s is not a port, such as 7071", os.Getenv("PORT"))
	}
	flags := flag.NewFlagSet("localhost", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, "Runs the staged function app: a small stand-in for the Azure Functions host.\n\nFlags:\n")
		flags.PrintDefaults()
	}
	flags.StringVar(&options.PackageDir, "package", "dist", "the staged package `folder`")
	flags.IntVar(&options.Port, "port", port, "the `port` on 127.0.0.1, 0 for any free one; env PORT")
	flags.StringVar(&options.DataDir, "data-dir", cmp.Or(os.Getenv("DATA_DIR"), ".data"), "the `folder` that keeps queues and Redis; env DATA_DIR")
	flags.StringVar(&options.AuthKey, "auth-key", "", "ask callers for this function `key`; without it none is needed")
	flags.StringVar(&options.ReadyFile, "ready-file", "", "write where everything is to this `file` (JSON) once the handler is ready")
	flags.DurationVar(&options.LockDuration, "lock-duration", 0, "how long a queue message stays locked (default 5m)")
	flags.IntVar(&options.MaxDeliveryCount, "max-delivery-count", 0, "how often a message is delivered before it is dead (default: setting MAX_DELIVERY_COUNT, or 10)")
	redis := flags.String("redis", "auto", "`which` Redis the handler gets: auto (REDIS_URL, or a redis-server from the PATH, or embedded), server, mini (embedded), none (the settings decide)")
	notifications := flags.String("redis-notifications", "on", "`on` or off: off starts redis-server without keyspace notifications and without CONFIG")
	quiet := flags.Bool("quiet-handler", false, "write what the handler prints to handler.log in the data folder")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *notifications != "on" && *notifications != "off" {
		return fmt.Errorf("--redis-notifications=%s is not on or off", *notifications)
	}
	options.Redis, options.NoRedisNotifications = localhost.RedisMode(*redis), *notifications == "off"
	options.Log = slog.New(slog.NewTextHandler(stderr, nil))
	if *quiet {
		file, err := openHandlerLog(options.DataDir)
		if err != nil {
			return err
		}
		defer file.Close()
		options.HandlerStdout, options.HandlerStderr = file, file
	}
	host := localhost.New(options)
	ctx, stop := stopOnSignal(host, stderr)
	defer stop()
	return host.Run(ctx)
}

func openHandlerLog(dataDir string) (io.WriteCloser, error) {
	if err := os.MkdirAll(dataDir, 0o700); err != nil {
		return nil, fmt.Errorf("make data folder: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dataDir, "handler.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open handler log: %w", err)
	}
	return file, nil
}

// stopOnSignal returns a context that ends with the first signal to stop. A second one ends everything at once.
func stopOnSignal(host *localhost.Host, stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		cancel()
		<-signals
		host.Kill()
		fmt.Fprintln(stderr, "localhost: stopped at once")
		os.Exit(130)
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel()
	}
}
