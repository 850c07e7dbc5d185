// Command loadtest puts the load of a published test on this app and writes an HTML report. It fails when an
// invocation failed, or when Redis had to refuse a connection.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/term"

	"userconnectivity/handler/loadtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "loadtest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	o, out, err := parse(args)
	if err != nil {
		return err
	}
	report, err := loadtest.Run(ctx, o)
	if err != nil {
		return err
	}
	if err := report.Print(os.Stdout); err != nil {
		return err
	}
	if err := write(report, out); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	fmt.Println("Report:", out)
	if problems := report.Problems(); len(problems) > 0 {
		return errors.New(strings.Join(problems, "; "))
	}
	return nil
}

// parse reads the flags.
func parse(args []string) (o loadtest.Options, out string, err error) {
	flags := flag.NewFlagSet("loadtest", flag.ContinueOnError)
	flags.Usage = func() {
		fmt.Fprint(flags.Output(), "Puts the load of a published test on this app, started here or running, and writes an HTML report.\n\nFlags:\n")
		flags.PrintDefaults()
	}
	flags.IntVar(&o.Users, "users", loadtest.PublishedUsers, "how many users")
	flags.IntVar(&o.Invocations, "invocations", loadtest.PublishedInvocations, "how many HTTP invocations; a fifth as many messages come on top")
	flags.Func("pace", "HTTP invocations per second: a `number`, fast (as the machine allows, the default) or published (19, takes half an hour)", func(text string) error {
		switch text {
		case "fast":
			o.Rate = 0
		case "published":
			o.Rate = loadtest.PublishedRate
		default:
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 {
				return errors.New("it is not fast, published or a number of at least 1")
			}
			o.Rate = n
		}
		return nil
	})
	flags.IntVar(&o.Workers, "workers", loadtest.PublishedInstances, "how many requests may be under way at once")
	flags.IntVar(&o.MaxClients, "maxclients", loadtest.PublishedMaxClients, "the connection limit of each Redis that is started")
	flags.IntVar(&o.Processes, "processes", 0, "how many handler processes share the HTTP load (default one, behind the host)")
	flags.BoolVar(&o.Naive, "naive", false, "also run the two naive designs: client per invocation, and connect and quit")
	flags.StringVar(&o.Host, "host", "bin/localhost", "the local host's `binary`")
	flags.StringVar(&o.Package, "package", "dist", "the staged package, a `folder`")
	flags.StringVar(&o.URL, "url", "", "the `URL` of a running app; without it one is started")
	flags.StringVar(&o.Key, "key", os.Getenv("FUNCTION_KEY"), "the function `key` of the running app; env FUNCTION_KEY")
	flags.StringVar(&o.QueueURL, "queue-url", "", "the `URL` of the running app's broker, such as http://127.0.0.1:7071/local/queues; without it no messages are sent")
	flags.StringVar(&o.RedisURL, "redis-url", "", "the `URL` of the running app's Redis, to count its clients")
	flags.StringVar(&out, "out", "loadtest.html", "the `file` of the report")
	if err := flags.Parse(args); err != nil {
		return o, out, err
	}
	o.URL = strings.TrimSuffix(o.URL, "/")
	switch {
	case flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case o.Users < 1 || o.Invocations < 1 || o.Workers < 1 || o.MaxClients < 1 || o.Processes < 0:
		err = errors.New("-users, -invocations, -workers and -maxclients must be at least 1, and -processes at least 0")
	case o.URL == "" && (o.QueueURL != "" || o.RedisURL != ""):
		err = errors.New("-queue-url and -redis-url go with -url: without it the test starts its own")
	case o.URL != "" && o.Processes > 0:
		err = errors.New("-processes starts handlers, which does not go with -url")
	}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		o.Progress = os.Stderr
	}
	return o, out, err
}

// write writes the report to a file.
func write(report *loadtest.Report, path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	w := bufio.NewWriter(file)
	if err := report.WriteHTML(w); err != nil {
		return err
	}
	return errors.Join(w.Flush(), file.Close())
}
