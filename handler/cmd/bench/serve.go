package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/redisstore"
	"userconnectivity/handler/triggers"
	"userconnectivity/handler/worker"
)

// The servers that the handler is measured against, each in a process of its own.
const (
	emptyServer = "empty" // a chi router that reads nothing and answers a constant
	naiveServer = "naive" // our HTTP layer over one command a request on go-redis's default pool
)

// serve runs a server until the bench closes its standard input.
func serve(ctx context.Context, which string) error {
	var routes http.Handler
	switch which {
	case emptyServer:
		routes = emptyRoutes()
	case naiveServer:
		store, err := newNaiveStore(ctx, os.Getenv("REDIS_URL"))
		if err != nil {
			return err
		}
		routes = triggers.Routes(triggers.Handlers{
			Tracker: presence.NewTracker(store, nil, presence.DefaultTTL),
			Worker:  noWorker{}, Listener: noListener{}, Log: slog.New(slog.DiscardHandler),
		})
	default:
		return fmt.Errorf("-serve %s: there is only %s and %s", which, emptyServer, naiveServer)
	}
	listen, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", os.Getenv("FUNCTIONS_CUSTOMHANDLER_PORT")))
	if err != nil {
		return fmt.Errorf("listen on FUNCTIONS_CUSTOMHANDLER_PORT: %w", err)
	}
	server := &http.Server{Handler: routes, ReadHeaderTimeout: 10 * time.Second}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin) // either way the bench has gone
		_ = server.Close()
	}()
	if err := server.Serve(listen); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// emptyRoutes answer heartbeats with as many bytes as the handler does.
func emptyRoutes() http.Handler {
	answer := []byte(`{"user":"` + userID(0) + `","session":"default","status":"online","change":"renewed",` +
		`"epoch":1700000000000,"expiresAt":"2026-01-01T00:00:00.000Z","beatAfterSeconds":15}`)
	r := chi.NewRouter()
	r.Get("/api/live", func(http.ResponseWriter, *http.Request) {})
	r.Post("/api/heartbeat", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(answer) // the client has gone
	})
	r.Post("/api/heartbeats", func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // a client that stops has gone
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"accepted":1000,"deferred":0,"stale":0,"rejected":[],"beatAfterSeconds":15}`)
	})
	return r
}

// naiveStore does what is done without thought: a script call for each request, on the default pool.
type naiveStore struct {
	client *redis.Client
	script *redis.Script
	// layout knows keys and arguments; it makes no call.
	layout *redisstore.Store
}

func newNaiveStore(ctx context.Context, url string) (*naiveStore, error) {
	opt, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("read REDIS_URL: %w", err)
	}
	s := &naiveStore{client: redis.NewClient(opt), layout: redisstore.New(nil, redisstore.Config{Partitions: partitions, LeaseKeys: true})}
	ttl := presence.DefaultTTL
	s.script = redis.NewScript(s.layout.HeartbeatCall([]presence.Beat{{User: userID(0), TTL: &ttl}}).Text)
	if err := s.script.Load(ctx, s.client).Err(); err != nil {
		return nil, fmt.Errorf("load the script: %w", err)
	}
	return s, nil
}

// Heartbeats applies the beats one by one.
func (s *naiveStore) Heartbeats(ctx context.Context, beats []presence.Beat) ([]presence.BeatOutcome, error) {
	outcomes := make([]presence.BeatOutcome, len(beats))
	for i := range beats {
		call := s.layout.HeartbeatCall(beats[i : i+1])
		answers, err := s.script.EvalSha(ctx, s.client, call.Keys, call.Args...).Slice()
		if err != nil || len(answers) != 2 { // the beat's, and the server's time
			return nil, fmt.Errorf("apply a heartbeat: %d answers, %w", len(answers), err)
		}
		answer, _ := answers[0].(string)
		if outcomes[i], err = redisstore.ReadHeartbeat(answer); err != nil {
			return nil, err
		}
	}
	return outcomes, nil
}

// noWorker takes no events: nothing of them is measured.
type noWorker struct{}

func (noWorker) Process(context.Context, []worker.Delivery) error     { return errOnlyBeats }
func (noWorker) DeadLetters(context.Context, []worker.Delivery) error { return errOnlyBeats }

// noListener is that of a process without one: it is well.
type noListener struct{}

func (noListener) Live() error { return nil }
func (noListener) Listener() (triggers.ListenerFigures, error) {
	return triggers.ListenerFigures{}, errOnlyBeats
}

var errOnlyBeats = errors.New("the naive server takes heartbeats only")

// Leaves fails: nothing of it is measured.
func (s *naiveStore) Leaves(context.Context, []presence.Leave) ([]presence.LeaveOutcome, error) {
	return nil, errOnlyBeats
}

// Users fails: nothing of it is measured.
func (s *naiveStore) Users(context.Context, []string) ([]*presence.User, error) {
	return nil, errOnlyBeats
}
