package servicebus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"userconnectivity/handler/identity"
)

// connection is one client of the SDK with one AMQP connection, and the links on it. It is never mended: after a
// fault it is retired and the next attempt makes a new one.
//
// It dials its own sockets, for two reasons. Closing them is the one sure way to end calls of the SDK that ignore
// their context; and a read error on one tells at once that the connection is lost, before anybody sends.
type connection struct {
	s      *Sender
	ctx    context.Context // ends when the connection is retired; its cause says why
	cancel context.CancelCauseFunc
	client func() (*azservicebus.Client, error) // made once
	lost   atomic.Bool

	mu      sync.Mutex
	made    *azservicebus.Client
	sockets map[*socket]struct{}
	fault   error // of the last dial or token, which the SDK hides

	// Guarded by s.mu.
	links   map[string]*link // by queue
	retired bool
}

// link is the sender of one queue.
type link struct {
	conn   *connection
	queue  string
	opened chan struct{} // closed when sender or err is set, for good
	sender *azservicebus.Sender
	err    error

	// Guarded by s.mu.
	replaces *link // to be dropped when this one is open
	users    int
	dropped  bool
	closing  bool
	used     time.Time // last opened or last sent on
	proved   bool      // a send on it succeeded
}

// newConnection does no I/O. The caller holds s.mu.
func (s *Sender) newConnection() *connection {
	c := &connection{s: s, sockets: map[*socket]struct{}{}, links: map[string]*link{}}
	c.ctx, c.cancel = context.WithCancelCause(s.ctx)
	c.client = sync.OnceValues(c.newClient)
	return c
}

func (c *connection) newClient() (*azservicebus.Client, error) {
	options := &azservicebus.ClientOptions{
		NewWebSocketConn: c.dial,
		// Waiting between attempts is decided in Send: the SDK would repeat at once when told to wait. It still
		// reopens a link once that was detached. (Zero would mean its defaults.)
		RetryOptions: azservicebus.RetryOptions{MaxRetries: -1},
	}
	var client *azservicebus.Client
	var err error
	if c.s.cfg.ConnectionString != "" {
		client, err = azservicebus.NewClientFromConnectionString(c.s.cfg.ConnectionString, options)
	} else {
		var inner azcore.TokenCredential
		if inner, err = c.s.cfg.Credential(); err != nil {
			return nil, &credentialError{err}
		}
		client, err = azservicebus.NewClient(c.s.endpoint.host, &credential{inner, c.ctx, c.noteToken}, options)
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.made = client
	return client, nil
}

// open opens a link to a queue: connection, tokens and attach, as far as they are missing.
func (c *connection) open(queue string) (*azservicebus.Sender, error) {
	sender, err := guard(c.ctx, c, func(ctx context.Context) (*azservicebus.Sender, error) {
		c.noteFault(nil)
		client, err := c.client()
		if err != nil {
			return nil, err
		}
		sender, err := client.NewSender(queue, nil)
		if err != nil {
			return nil, err
		}
		if _, err := sender.NewMessageBatch(ctx, nil); err != nil {
			_ = sender.Close(ctx) // the client remembers it otherwise
			return nil, err
		}
		return sender, nil
	})
	if err == nil {
		return sender, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fault != nil && !errors.Is(c.fault, context.Canceled) {
		err = c.fault
	}
	return nil, err
}

// Why a connection was retired.
var (
	errNoAnswer = errors.New("no answer")       // the watchdog gave a step up
	errLost     = errors.New("connection lost") // somebody saw that it is broken
)

// guard runs one step with the SDK in a goroutine of its own and waits for it, for a caller whose context is ctx. The
// watchdog does not depend on either: when a step takes longer than SendTimeout, its connection is retired.
//
// A caller who gives up leaves the step running: a step that is cancelled between two frames of a message would leave
// its link unusable, and a deadline that passes during a write would cost everybody the connection.
func guard[T any](ctx context.Context, c *connection, step func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	s := c.s
	s.wg.Add(1)
	watchdog := time.AfterFunc(s.cfg.SendTimeout, func() {
		defer s.wg.Done()
		s.retire(c, errNoAnswer)
	})
	done := make(chan result, 1)
	s.wg.Go(func() {
		value, err := step(c.ctx)
		if watchdog.Stop() {
			s.wg.Done()
		}
		done <- result{value, err}
	})
	var r result
	select {
	case r = <-done:
	case <-ctx.Done():
		return r.value, context.Cause(ctx)
	case <-c.ctx.Done(): // the step ends as well, or never
		select {
		case r = <-done:
		default:
			r.err = context.Cause(c.ctx)
		}
	}
	if why := context.Cause(c.ctx); r.err != nil && (why == errNoAnswer || why != nil && errors.Is(r.err, context.Canceled)) {
		r.err = why // not what the end of the connection made of it
	}
	return r.value, r.err
}

// farewell closes a healthy connection with a word to the broker, in at most closeTimeout.
func (c *connection) farewell() {
	c.mu.Lock()
	client := c.made
	c.mu.Unlock()
	if client == nil || c.lost.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(c.ctx, closeTimeout)
	defer cancel()
	done := make(chan struct{})
	c.s.wg.Go(func() {
		defer close(done)
		_ = client.Close(ctx)
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// end closes everything that a retired connection holds, sockets first, and waits for the SDK at most closeTimeout.
func (c *connection) end() {
	c.mu.Lock()
	client := c.made
	sockets := c.sockets
	c.sockets = nil
	c.mu.Unlock()
	for s := range sockets {
		_ = s.Conn.Close()
	}
	if client != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		defer cancel()
		_ = client.Close(ctx)
	}
}

// dial is called by the SDK for every connection; the name of the option that holds it speaks of web sockets, but
// any stream will do.
func (c *connection) dial(ctx context.Context, _ azservicebus.NewWebSocketConnArgs) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	defer context.AfterFunc(c.ctx, cancel)()
	e := c.s.endpoint
	var conn net.Conn
	var err error
	if e.emulator {
		conn, err = c.s.dialer.DialContext(ctx, "tcp", c.s.dialAddress)
	} else {
		config := c.s.tls.Clone()
		if config.ServerName == "" {
			config.ServerName = e.hostname()
		}
		conn, err = (&tls.Dialer{NetDialer: c.s.dialer, Config: config}).DialContext(ctx, "tcp", c.s.dialAddress)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.fault = &dialError{err}
		return nil, c.fault
	}
	if c.sockets == nil { // retired meanwhile
		_ = conn.Close()
		return nil, net.ErrClosed
	}
	c.fault = nil
	s := &socket{Conn: conn, owner: c}
	c.sockets[s] = struct{}{}
	return s, nil
}

// socket tells its connection when it was lost.
type socket struct {
	net.Conn
	owner *connection
}

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if err != nil && !s.owner.lost.Swap(true) {
		select {
		case s.owner.s.wake <- struct{}{}:
		default: // the keeper is awake already
		}
	}
	return n, err
}

func (s *socket) Close() error {
	s.owner.mu.Lock()
	delete(s.owner.sockets, s)
	s.owner.mu.Unlock()
	return s.Conn.Close()
}

// credential bounds the calls of the SDK, which asks without a deadline, and passes on what it hides.
type credential struct {
	inner azcore.TokenCredential
	ctx   context.Context               // of the calls, besides what the SDK passes
	note  func(token string, err error) // hears of every answer; may be nil
}

// GetToken implements azcore.TokenCredential.
func (t *credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	ctx, cancel := context.WithTimeout(ctx, tokenTimeout)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	token, err := t.inner.GetToken(ctx, o)
	if err != nil {
		err = &credentialError{err}
	}
	if t.note != nil {
		t.note(token.Token, err)
	}
	return token, err
}

// noteFault remembers why there is no socket or no token, nil when there is.
func (c *connection) noteFault(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = err
}

// noteToken remembers the failure, and whose token it was.
func (c *connection) noteToken(token string, err error) {
	c.noteFault(err)
	if err == nil {
		c.s.identity.Store(identity.ObjectID(token))
	}
}

type dialError struct{ err error }

func (e *dialError) Error() string { return fmt.Sprintf("connect: %v", e.err) }
func (e *dialError) Unwrap() error { return e.err }

type credentialError struct{ err error }

func (e *credentialError) Error() string { return fmt.Sprintf("get a token: %v", e.err) }
func (e *credentialError) Unwrap() error { return e.err }
