package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/singleflight"

	"userconnectivity/handler/config"
	"userconnectivity/handler/cosmosstore"
	"userconnectivity/handler/deferral"
	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/expiry"
	"userconnectivity/handler/health"
	"userconnectivity/handler/identity"
	"userconnectivity/handler/localqueue"
	"userconnectivity/handler/maintenance"
	"userconnectivity/handler/metrics"
	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/redisconn"
	"userconnectivity/handler/redisstore"
	"userconnectivity/handler/servicebus"
	"userconnectivity/handler/sqlitestore"
	"userconnectivity/handler/telemetry"
	"userconnectivity/handler/triggers"
	"userconnectivity/handler/worker"
)

// sender puts messages on a queue; Ping reports whether it can be reached.
type sender interface {
	Send(ctx context.Context, queue string, msgs []queue.Message) error
	Ping(ctx context.Context, queue string) error
}

// recordStore is the event log and the durable users records.
type recordStore interface {
	Write(ctx context.Context, updates []eventlog.Update) error
	Event(ctx context.Context, id string) (eventlog.Record, error)
	UserEvents(ctx context.Context, user string, limit int, continuation string) (eventlog.Page, error)
	Apply(ctx context.Context, e presence.Event) (bool, error)
	User(ctx context.Context, id string) (presence.User, bool, error)
	Ping(ctx context.Context) error
	Close() error
}

// app is every part, connected. This file is the only one that knows them all.
type app struct {
	cfg      config.Config
	wrong    config.Problems
	log      *slog.Logger
	redis    *redisconn.Client
	breaker  *maintenance.Set
	store    *redisstore.Store
	deferred *deferral.Store
	records  recordStore
	sender   sender
	listener *expiry.Listener
	worker   *worker.Worker
	router   http.Handler
	// trackers are those of heartbeats over HTTP and over the queue.
	trackers metrics.Heartbeats
	// requests, sent and logged measure the ways in and out, and census the whole state; metrics has all numbers.
	requests *metrics.HTTP
	sent     *queue.Meter
	logged   *eventlog.Meter
	census   *redisstore.Census
	metrics  func() *metrics.Registry
	identity *identity.Identity
	// traces follow events through the parts; nil where none are wanted.
	traces *telemetry.Traces
	// looks are those of health that run now, begun has when each began, and rises when counters last rose.
	// queueWarnings is what the last look at the queue's properties found.
	looks         singleflight.Group
	begun         sync.Map
	rises         health.Rises
	queueWarnings atomic.Pointer[[]string]
}

// build connects the parts. It does no I/O: everything is reached on first use, so that the port opens at once. A part
// whose settings are wrong refuses every call with the reason, and the others do their work.
func build(cfg config.Config, wrong config.Problems, log *slog.Logger) *app {
	a := &app{cfg: cfg, wrong: append(wrong, cfg.Ignored(wrong)...), log: log, identity: identity.New()}
	a.breaker = maintenance.NewSet(maintenance.SetConfig{
		Log:   log,
		Ping:  func(ctx context.Context, node string) error { return a.redis.Ping(ctx, node) },
		Broke: func(node string) { a.redis.Abandon(node) },
	})
	a.redis = redisconn.NewClient(a.redisEndpoint(), cfg.App+"/"+cfg.Instance, a.breaker)
	a.redis.Log, a.redis.KeepSettings = log, !cfg.SetNotifications
	a.store = redisstore.New(a.redis, redisstore.Config{Partitions: cfg.Partitions, LeaseKeys: cfg.LeaseKeys, Log: log})
	a.records, a.sender = a.newRecords(), a.newSender()
	a.traces = a.newTraces()
	a.requests, a.census = metrics.NewHTTP(), redisstore.NewCensus(a.store)
	a.sent, a.logged = queue.NewMeter(a.traces.Sender(a.sender)), eventlog.NewMeter(a.traces.Store(a.records))

	codec := queue.Codec{Source: "/" + cfg.App, TypePrefix: cfg.EventTypePrefix}
	a.deferred = deferral.New(a.store, a.store.Away, deferral.Config{Log: log})
	tracker := presence.NewTracker(a.deferred, a.logged, cfg.SessionTTL)
	// What comes over a queue is not kept in memory: the broker keeps it until it is applied. Only while some primaries of
	// a cluster are away, and others are not, the beats of theirs are, as nobody else's may wait behind them.
	away := func() bool { _, all := a.breaker.Open(""); return all }
	queued := presence.NewTracker(a.deferred.Unless(away), a.logged, cfg.SessionTTL)
	a.trackers = metrics.Heartbeats{metrics.OverHTTP: tracker, metrics.OverQueue: queued}
	to := queue.Destinations{Events: cfg.EventsQueue, Routes: cfg.ExpirationRoutes}
	relay := expiry.NewRelay(a.store.Outbox(cfg.App+"/"+cfg.Instance), cfg.Partitions, a.sent, a.traces.Detected(a.logged), codec, to, log)
	a.listener = expiry.NewListener(a.redis, a.store, relay, log)
	a.worker = worker.New(a.traces.Processed(a.logged, queue.ConnectivityEvents), a.logged, a.sent, codec, to, cfg.MaxDelivery, log)
	handlers := triggers.Handlers{
		Tracker:  tracker,
		Events:   a.logged,
		Replayer: a.worker,
		Worker:   a.worker,
		Beats:    triggers.HeartbeatQueue{Tracker: queued, Sender: a.sent, Away: away},
		Listener: a,
		Health:   a,
		Metrics:  a,
		Complete: a.logIsComplete,
		Observer: a.requests,
		Version:  version,
		Log:      log,
	}
	if a.traces != nil {
		handlers.Traces = a.traces
	}
	a.router = triggers.Routes(handlers)
	// It is made at the first scrape: the first answer of a process need not wait for it.
	a.metrics = sync.OnceValue(func() *metrics.Registry { return metrics.NewRegistry(a.collectors()...) })
	return a
}

// close ends what the parts hold open.
func (a *app) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	a.store.Close()
	errs := []error{a.redis.Close(), a.records.Close()}
	if s, ok := a.sender.(interface{ Close(context.Context) error }); ok {
		errs = append(errs, s.Close(ctx))
	}
	if err := a.traces.Shutdown(ctx); err != nil { // at last: the others may still make some
		a.log.WarnContext(ctx, "the last traces could not be sent", "error", err)
	}
	return errors.Join(errs...)
}

// redisEndpoint chooses how Redis is reached: by URL, by host and access key, or by host and identity.
func (a *app) redisEndpoint() redisconn.Endpoint {
	cfg := a.cfg
	e := redisconn.Endpoint{
		URL: string(cfg.RedisURL), Host: cfg.RedisHost, AccessKey: string(cfg.RedisAccessKey),
		Unannounced: cfg.MaintenanceEvents == "off",
	}
	if e.Unusable = a.wrong.Unusable(config.Redis); e.Unusable == nil && e.URL == "" && e.Host != "" && e.AccessKey == "" {
		e.Credentials, e.Life = a.identity.Redis, identity.RedisConnectionLife
	}
	return e
}

// newRecords chooses the event log: Cosmos DB where an account is set, else a file.
func (a *app) newRecords() recordStore {
	cfg := a.cfg
	if wrong := a.wrong.Unusable(config.EventLog); wrong != nil {
		return noRecords{unusableRecords(wrong)}
	}
	if cfg.CosmosEndpoint == "" {
		const name = "events.db"
		var options []sqlitestore.Option
		if spare := cfg.SpareDir(); spare != "" {
			options = append(options, sqlitestore.WithFallback(filepath.Join(spare, name)))
		}
		return sqlitestore.NewEmbedded(sqlitestore.New(filepath.Join(cfg.DataDir, name), options...), cfg.LogPerInstance())
	}
	c := cosmosstore.Config{Endpoint: cfg.CosmosEndpoint, Key: cosmosstore.Secret(cfg.CosmosKey), Database: cfg.CosmosDatabase}
	if cfg.CosmosKey == "" {
		c.Credential = a.identity.Credential
	}
	return cosmosstore.New(c)
}

// newSender chooses the queue: Service Bus where a connection is set, else the local host's embedded broker.
func (a *app) newSender() sender {
	cfg := a.cfg
	wrong := a.wrong.Unusable(config.Queue)
	switch {
	case wrong != nil: // not even another queue is used: the events would be where nobody looks
	case cfg.ServiceBusConnection != "":
		s, err := servicebus.New(servicebus.Config{ConnectionString: string(cfg.ServiceBusConnection), Logger: a.log})
		if err == nil {
			return s
		}
		wrong = fmt.Errorf("ServiceBusConnection: %w", err)
	case cfg.ServiceBusNamespace != "":
		s, err := servicebus.New(servicebus.Config{Namespace: cfg.ServiceBusNamespace, Credential: a.identity.Credential, Logger: a.log})
		if err == nil {
			return s
		}
		wrong = fmt.Errorf("ServiceBusConnection__fullyQualifiedNamespace: %w", err)
	case cfg.LocalQueueURL != "":
		return localqueue.New(cfg.LocalQueueURL, nil)
	default:
		return noSender{errNoQueue}
	}
	return noSender{unusableQueue(wrong)}
}

// newTraces returns what makes traces, nil where none are wanted.
func (a *app) newTraces() *telemetry.Traces {
	cfg := a.cfg
	if !cfg.Traced() {
		return nil
	}
	headers, err1 := config.Pairs(string(cfg.TracesHeaders))
	attributes, err2 := config.Pairs(cfg.TracesAttributes)
	if err := errors.Join(err1, err2); err != nil { // they were checked
		a.log.WarnContext(context.Background(), "there are no traces", "error", err)
		return nil
	}
	database := "azure.cosmosdb"
	if cfg.CosmosEndpoint == "" {
		database = "sqlite"
	}
	return telemetry.New(telemetry.Config{
		Endpoint: cfg.TracesEndpoint, Headers: headers, Timeout: cfg.TracesTimeout, Console: cfg.TracesExporter == "console",
		Sampler: cfg.TracesSampler, Ratio: cfg.TracesRatio, EventLog: database,
		Service: cmp.Or(cfg.TracesService, attributes["service.name"], cfg.App), Version: version, Instance: cfg.Instance, Attributes: attributes,
	}, a.log)
}

// subscribe keeps the one subscription of this process, to expired events and to Azure's maintenance messages.
// A process without the listener has one only where the budget of connections allows it.
func (a *app) subscribe(ctx context.Context) {
	s := redisconn.Subscriber{Maintenance: func(text string) { a.breaker.Notify(maintenance.Parse(text, time.Now())) }}
	if a.cfg.Listener {
		s.Expired = a.listener.KeyExpired
	} else if !a.maySubscribe(ctx) {
		return
	}
	var down atomic.Bool
	s.Subscribed = func() {
		if a.cfg.Listener {
			a.listener.WakeAll()
		}
		if a.redis.Subscription() == nil && down.CompareAndSwap(true, false) {
			a.log.InfoContext(ctx, "the Redis subscription stands again")
		}
	}
	a.redis.Subscribe(ctx, s, func(err error) {
		if down.CompareAndSwap(false, true) { // once for each outage, however often it is tried
			a.log.WarnContext(ctx, "the Redis subscription does not stand; it is tried again until it does", "error", err)
		}
	})
}

// serverCheck is how often a process that may be short of connections looks whether Redis has answered yet.
const serverCheck = time.Second

// maySubscribe reports whether a process without the listener may have a second connection. With the setting
// auto that depends on what Redis allows, which is known once the first request has connected.
func (a *app) maySubscribe(ctx context.Context) bool {
	switch a.cfg.MaintenanceEvents {
	case "on":
		return true
	case "off":
		return false
	}
	t := time.NewTicker(serverCheck)
	defer t.Stop()
	for {
		if _, _, ok := a.redis.Server(); ok {
			return a.budget(2).Fits()
		}
		select {
		case <-ctx.Done():
			return false
		case <-t.C:
		}
	}
}

// budget is the arithmetic of connections with so many for each process.
func (a *app) budget(perProcess int) redisconn.Budget {
	limit := a.cfg.RedisMaxClients
	if server, _, ok := a.redis.Server(); limit == 0 && ok {
		limit = server.MaxClients
	}
	return redisconn.Budget{PerProcess: perProcess, Instances: a.cfg.MaxInstances, Limit: limit}
}

// closeTimeout bounds the end of a handler that is asked to end.
const closeTimeout = 5 * time.Second

// run is the life of the process: settings, listen, serve until ctx ends or the parent is gone. Settings that are wrong
// end it only where it could not even say so: the host stops the whole app after three ends, with all that runs well.
func run(ctx context.Context, environ []string, out io.Writer) error {
	cfg, wrong := config.FromEnv(config.Lookup(environ))
	if unusable := wrong.Unusable(config.Process); unusable != nil {
		return fmt.Errorf("settings: %w", unusable)
	}
	log := newLogger(out, cfg.LogLevel)
	listen, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.Port)))
	if err != nil {
		return fmt.Errorf("listen on FUNCTIONS_CUSTOMHANDLER_PORT: %w", err)
	}
	redisconn.LogTo(log)
	a := build(cfg, wrong, log)
	a.tellSettings(ctx, environ)
	// Requests may take long, so only their head has a deadline. Idle connections outlive the host's pool.
	server := &http.Server{
		Handler: a.router, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 10 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}

	log.InfoContext(ctx, "handler started", "version", version, "port", cfg.Port, "listener", cfg.Listener)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	hung := make(chan error, 1)
	g.Go(func() error {
		if err := server.Serve(listen); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if err := server.Shutdown(stop); err != nil {
			_ = server.Close() // what is still under way is cut off: the host sends it again
		}
		return nil
	})
	g.Go(func() error {
		watchParent(ctx, func() {
			log.WarnContext(ctx, "the parent process has gone: ending")
			cancel()
		})
		return nil
	})
	g.Go(func() error {
		a.breaker.Run(ctx)
		return nil
	})
	g.Go(func() error {
		a.deferred.Run(ctx)
		return nil
	})
	g.Go(func() error {
		a.subscribe(ctx)
		return nil
	})
	g.Go(func() error {
		a.tellLog(ctx)
		return nil
	})
	if cfg.Listener {
		g.Go(func() error {
			err := a.listener.Run(ctx)
			if err != nil {
				// What the loop waits for, such as the reader of the log, others may wait for, too.
				time.AfterFunc(2*closeTimeout, func() { hung <- err })
			}
			return err
		})
		g.Go(func() error {
			a.census.Run(ctx)
			return nil
		})
		if checker, ok := a.sender.(queueChecker); ok {
			g.Go(func() error {
				a.checkQueue(ctx, checker)
				return nil
			})
		}
	}
	ended := make(chan error, 1)
	go func() { // ends with the process where a part hangs
		err := g.Wait()
		ended <- errors.Join(err, a.close())
	}()
	select {
	case err := <-ended:
		return err
	case err := <-hung:
		return err
	}
}

// tellSettings logs what is wrong with the settings: an error for each that holds a part up.
func (a *app) tellSettings(ctx context.Context, environ []string) {
	for _, p := range a.wrong {
		level, message := slog.LevelError, "a setting is wrong: a part of the app does not run"
		if p.Minor {
			level, message = slog.LevelWarn, "a setting is wrong or has no effect"
		}
		a.log.Log(ctx, level, message, "setting", p.Setting, "part", p.Part, "problem", p.Text)
	}
	for _, warning := range config.Misspelt(environ) {
		a.log.WarnContext(ctx, "a setting may be misspelt", "problem", warning)
	}
}
