// Package servicebus sends messages to the queues and topics of one Azure Service Bus namespace, or of the official
// emulator.
//
// It keeps what the SDK does not promise. No call waits for ever: a watchdog that does not depend on the context gives
// up a send that never returns, and a new client takes over. Links are opened anew before Service Bus detaches them as
// idle, and a lost connection is noticed and replaced while nobody sends, so that the first message after a quiet time
// is as fast as any. A send is repeated only with the same message ids, which duplicate detection drops: what was
// acknowledged is in the queue, and what was not may be there once.
package servicebus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"userconnectivity/handler/queue"
)

const (
	defaultSendTimeout = 30 * time.Second
	// Service Bus detaches a link after ten minutes without a send; keep-alive frames do not count.
	defaultKeepWarm = 5 * time.Minute

	dialTimeout  = 10 * time.Second
	tokenTimeout = 20 * time.Second
	closeTimeout = 5 * time.Second

	// maxTries bounds the attempts of one batch. The caller keeps what was not sent and comes back with it.
	maxTries = 5
	// defaultFresh is how long after its last use a link proves by itself that the queue can be reached.
	defaultFresh = 10 * time.Second
)

// ErrClosed is returned after Close.
var ErrClosed = errors.New("the Service Bus sender is closed")

// Config says which namespace, and how to get in: ConnectionString alone, or Namespace with Credential.
type Config struct {
	// ConnectionString is that of a namespace, of one queue or topic, or of the official emulator
	// (UseDevelopmentEmulator=true).
	ConnectionString string
	// Namespace is the fully qualified name, such as contoso.servicebus.windows.net.
	Namespace string
	// Credential makes the credential for Namespace. It is called at the first use, and again while it fails.
	Credential func() (azcore.TokenCredential, error)
	// SendTimeout is how long the watchdog waits for one attempt to connect or to send one batch; 0 is 30 s.
	SendTimeout time.Duration
	// KeepWarm is the time without a send after which a link is opened anew; 0 is 5 minutes, less than 0 is never.
	KeepWarm time.Duration
	// Logger receives lost connections and throttling; nil is slog.Default.
	Logger *slog.Logger
}

// Sender sends to the queues and topics of one namespace, over one client with one link per queue. It is safe for
// concurrent use.
type Sender struct {
	cfg         Config
	log         *slog.Logger
	endpoint    endpoint
	dialAddress string
	dialer      *net.Dialer
	tls         *tls.Config
	transport   policy.Transporter // of the management endpoint; nil is the default of the SDK
	backoff     time.Duration      // before the second repetition; doubles
	fresh       time.Duration

	ctx      context.Context // ends with Close
	cancel   context.CancelCauseFunc
	wg       sync.WaitGroup // calls, steps, closings and the keeper
	wake     chan struct{}  // a connection was lost
	gone     chan struct{}  // closed when nothing is left after Close
	identity atomic.Value   // string: whom the last token is for

	mu        sync.Mutex
	closed    bool
	current   *connection
	warm      map[string]bool // queues that a link was once opened to
	keeping   bool
	busyUntil time.Time // Service Bus asked to wait
}

// New checks the configuration. It does no I/O: the first use connects.
func New(cfg Config) (*Sender, error) {
	var e endpoint
	var err error
	switch {
	case cfg.ConnectionString != "" && cfg.Namespace != "":
		return nil, errors.New("service bus: set a connection string or a namespace, not both")
	case cfg.ConnectionString != "":
		e, err = parseConnectionString(cfg.ConnectionString)
	case cfg.Namespace == "":
		return nil, errors.New("service bus: neither a connection string nor a namespace is set")
	case cfg.Credential == nil:
		return nil, errors.New("service bus: a namespace needs a credential")
	default:
		e, err = parseNamespace(cfg.Namespace)
	}
	if err != nil {
		return nil, fmt.Errorf("service bus: %w", err)
	}
	if cfg.SendTimeout <= 0 {
		cfg.SendTimeout = defaultSendTimeout
	}
	if cfg.KeepWarm == 0 {
		cfg.KeepWarm = defaultKeepWarm
	}
	s := &Sender{
		cfg:         cfg,
		log:         cfg.Logger,
		endpoint:    e,
		dialAddress: e.address(),
		dialer:      &net.Dialer{},
		tls:         &tls.Config{MinVersion: tls.VersionTLS12},
		backoff:     200 * time.Millisecond,
		fresh:       defaultFresh,
		wake:        make(chan struct{}, 1),
		gone:        make(chan struct{}),
		warm:        map[string]bool{},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	s.identity.Store("")
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	return s, nil
}

// Send sends all messages to a queue or topic, in their order, or returns an error; then some may have been sent, and
// sending all again with the same ids is harmless. It returns a *TooLargeError when the only messages not sent are
// ones that the queue can never take. Faults that pass are retried for a few seconds; every other error says what is
// wrong and how to mend it.
func (s *Sender) Send(ctx context.Context, queue string, msgs []queue.Message) error {
	if len(msgs) == 0 {
		return nil
	}
	left, err := convert(msgs)
	if err != nil {
		return fmt.Errorf("send to queue %s: %w", queue, err)
	}
	ctx, done, err := s.begin(ctx, queue)
	if err != nil {
		return fmt.Errorf("send to queue %s: %w", queue, err)
	}
	defer done()

	var tooLarge []TooLarge
	var last error
	limit := maxBatch
	for tries := 0; len(left) > 0; {
		if err := s.waitWhileBusy(ctx); err != nil {
			return s.explain(ctx, "send to", queue, err, last)
		}
		got, v, err := s.try(ctx, queue, left, limit)
		if errors.Is(err, errTooMuch) && got.n > 1 {
			limit = got.n / 2
			continue
		}
		if errors.Is(err, errTooMuch) && tries == maxTries-1 { // refused alone, again and again
			got.tooLarge = &TooLarge{ID: *left[0].MessageID, Size: int64(len(left[0].Body))}
			err = nil
		}
		if err == nil {
			if got.tooLarge != nil {
				tooLarge = append(tooLarge, *got.tooLarge)
			}
			left = left[got.n:]
			tries, last = 0, nil
			continue
		}
		tries++
		if v.kind == permanent || tries == maxTries {
			return s.explain(ctx, "send to", queue, err, last)
		}
		last = err
		s.log.Warn("service bus: send again", "queue", queue, "try", tries, "cause", s.words(err))
		if v.kind == throttled {
			s.busy(v.wait)
		} else if err := sleep(ctx, s.delay(tries, v)); err != nil {
			return s.explain(ctx, "send to", queue, err, last)
		}
	}
	if len(tooLarge) > 0 {
		return &TooLargeError{Queue: queue, Messages: tooLarge}
	}
	return nil
}

// try is one attempt: it sends the first batch of msgs over the link of the queue. A link that failed is not used again.
func (s *Sender) try(ctx context.Context, queue string, msgs []*azservicebus.Message, limit int) (sent, verdict, error) {
	l, err := s.acquire(ctx, queue)
	if err != nil {
		return sent{}, judge(ctx, err), err
	}
	got, err := guard(ctx, l.conn, func(ctx context.Context) (sent, error) {
		return sendFirst(ctx, l.sender, msgs, limit)
	})
	proved := s.release(l, err == nil)
	if err == nil {
		return got, verdict{}, nil
	}
	v := judge(ctx, err)
	switch v.scope {
	case ofLink:
		s.drop(l)
	case ofConnection:
		s.retire(l.conn, errLost)
	}
	if v.kind == permanent && v.scope == ofLink && proved {
		// What worked before may be refused because the token or the link became stale: a new link decides.
		v.kind = lost
	}
	return got, v, err
}

// delay is the pause before the next attempt: none after the first loss, for a new link is likely to do.
func (s *Sender) delay(tries int, v verdict) time.Duration {
	if tries == 1 && v.kind == lost {
		return 0
	}
	d := s.backoff << max(0, tries-2)
	return d/2 + rand.N(d)
}

// Ping returns nil when messages can be sent to a queue or topic: it opens a new link, unless one was used a few
// seconds ago. It sends nothing. Its errors are those of Send.
func (s *Sender) Ping(ctx context.Context, queue string) error {
	ctx, done, err := s.begin(ctx, queue)
	if err != nil {
		return fmt.Errorf("reach queue %s: %w", queue, err)
	}
	defer done()
	s.mu.Lock()
	var l *link
	if s.current != nil && !s.current.lost.Load() {
		l = s.current.links[queue]
	}
	if l != nil && l.used.IsZero() {
		l = nil // not open yet
	}
	proven := l != nil && time.Since(l.used) < s.fresh
	s.mu.Unlock()
	switch {
	case proven:
		return nil
	case l != nil:
		err = s.renew(ctx, l)
	default:
		if l, err = s.acquire(ctx, queue); err == nil {
			s.release(l, false)
		}
	}
	if err != nil {
		return s.explain(ctx, "reach", queue, err, nil)
	}
	return nil
}

// Close ends all calls, closes the connection and waits until nothing of it is left, or until ctx ends. It may be
// called again.
func (s *Sender) Close(ctx context.Context) error {
	s.mu.Lock()
	c := s.current
	s.current = nil
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if first {
		go func() {
			defer close(s.gone)
			if c != nil {
				c.farewell()
			}
			s.cancel(ErrClosed)
			if c != nil {
				c.end()
			}
			s.wg.Wait()
		}()
	}
	select {
	case <-s.gone:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close the Service Bus sender: %w", context.Cause(ctx))
	}
}

// begin starts a call: the context also ends with Close, and done must be called at the end.
func (s *Sender) begin(ctx context.Context, queue string) (context.Context, func(), error) {
	if e := s.endpoint.entity; e != "" && !strings.EqualFold(e, queue) {
		return nil, nil, fmt.Errorf("the connection string is for %s alone (EntityPath): set that of the namespace %s", e, s.endpoint.host)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, ErrClosed
	}
	s.wg.Add(1)
	if !s.keeping && s.cfg.KeepWarm > 0 {
		s.keeping = true
		s.wg.Go(s.keep)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(s.ctx, func() { cancel(ErrClosed) })
	return ctx, func() {
		stop()
		cancel(nil)
		s.wg.Done()
	}, nil
}

// acquire returns the open link of a queue, and opens what is missing: once, however many ask. The caller releases it.
func (s *Sender) acquire(ctx context.Context, queue string) (*link, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, ErrClosed
	}
	if s.current != nil && s.current.lost.Load() {
		s.retireLocked(s.current, errLost)
	}
	if s.current == nil {
		s.current = s.newConnection()
	}
	l := s.current.links[queue]
	if l == nil {
		l = &link{conn: s.current, queue: queue, opened: make(chan struct{})}
		s.current.links[queue] = l
		s.wg.Go(func() { s.open(l) })
	}
	l.users++
	s.mu.Unlock()

	var err error
	select {
	case <-l.opened:
		err = l.err
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		s.release(l, false)
		return nil, err
	}
	return l, nil
}

// open opens a link for all who wait for it, on the time of its connection, not of one of them. A failure is not
// remembered.
func (s *Sender) open(l *link) {
	sender, err := l.conn.open(l.queue)
	v := judge(s.ctx, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer close(l.opened)
	if err != nil {
		l.err = err
		s.dropLocked(l)
		switch v.scope {
		case ofLink:
			if l.replaces != nil {
				s.dropLocked(l.replaces)
			}
		case ofConnection:
			s.retireLocked(l.conn, errLost)
		}
		if v.kind == permanent {
			delete(s.warm, l.queue)
		}
		return
	}
	l.sender, l.used = sender, time.Now()
	s.warm[l.queue] = true
	if old := l.replaces; old != nil {
		l.replaces = nil
		if old.dropped { // somebody else replaced it
			s.dropLocked(l)
			return
		}
		s.dropLocked(old)
		l.conn.links[l.queue] = l
	}
}

// release ends a use of a link and tells whether a send on it ever succeeded.
func (s *Sender) release(l *link, succeeded bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.users--
	if succeeded {
		l.used, l.proved = time.Now(), true
	}
	s.closeUnusedLocked(l)
	return l.proved
}

// drop takes a link out of use. It is closed when its last user has released it.
func (s *Sender) drop(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dropLocked(l)
}

func (s *Sender) dropLocked(l *link) {
	if l.dropped {
		return
	}
	l.dropped = true
	if l.conn.links[l.queue] == l {
		delete(l.conn.links, l.queue)
	}
	s.closeUnusedLocked(l)
}

func (s *Sender) closeUnusedLocked(l *link) {
	if !l.dropped || l.users > 0 || l.sender == nil || l.closing || l.conn.retired {
		return
	}
	l.closing = true
	s.wg.Go(func() {
		ctx, cancel := context.WithTimeout(l.conn.ctx, closeTimeout)
		defer cancel()
		_ = l.sender.Close(ctx)
	})
}

// renew replaces a link by a new one to the same queue, without a moment in which there is none.
func (s *Sender) renew(ctx context.Context, old *link) error {
	l := &link{conn: old.conn, queue: old.queue, opened: make(chan struct{}), replaces: old}
	s.wg.Go(func() { s.open(l) })
	select {
	case <-l.opened:
		return l.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retire takes a connection out of use and closes it in the background.
func (s *Sender) retire(c *connection, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retireLocked(c, why)
}

func (s *Sender) retireLocked(c *connection, why error) {
	if c.retired {
		return
	}
	c.retired = true
	if s.current == c {
		s.current = nil
	}
	c.cancel(why)
	s.wg.Go(c.end)
}

// keep renews idle links before Service Bus detaches them, and replaces a lost connection before somebody needs it.
func (s *Sender) keep() {
	ticker := time.NewTicker(s.cfg.KeepWarm / 4)
	defer ticker.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-ticker.C:
			s.rewarm()
		case <-s.wake:
			s.rewarm()
			// A broker that drops every new connection is not besieged.
			if sleep(s.ctx, s.backoff) != nil {
				return
			}
		}
	}
}

// rewarm brings every link that was once open, and was not used for a while, back to life.
func (s *Sender) rewarm() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	if s.current != nil && s.current.lost.Load() {
		s.log.Warn("service bus: connection lost", "namespace", s.endpoint.host)
		s.retireLocked(s.current, errLost)
	}
	var idle []*link
	var missing []string
	for queue := range s.warm {
		var l *link
		if s.current != nil {
			l = s.current.links[queue]
		}
		if l == nil {
			missing = append(missing, queue)
		} else if l.users == 0 && !l.used.IsZero() && time.Since(l.used) >= s.cfg.KeepWarm {
			idle = append(idle, l)
		}
	}
	s.mu.Unlock()
	for _, l := range idle {
		if err := s.renew(s.ctx, l); err != nil && s.ctx.Err() == nil {
			s.log.Warn("service bus: reopen an idle link", "queue", l.queue, "cause", s.words(err))
		}
	}
	for _, queue := range missing {
		l, err := s.acquire(s.ctx, queue)
		if err == nil {
			s.release(l, false)
		} else if s.ctx.Err() == nil {
			s.log.Warn("service bus: reopen a lost link", "queue", queue, "cause", s.words(err))
		}
	}
}

// busy makes every send wait: Service Bus throttles a namespace, not one caller.
func (s *Sender) busy(wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if until := time.Now().Add(wait); until.After(s.busyUntil) {
		s.busyUntil = until
	}
}

func (s *Sender) waitWhileBusy(ctx context.Context) error {
	for {
		s.mu.Lock()
		wait := time.Until(s.busyUntil)
		s.mu.Unlock()
		if wait <= 0 {
			return nil
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
