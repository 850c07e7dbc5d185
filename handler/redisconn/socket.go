package redisconn

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// sockets are the connections that a Client has open. go-redis opens a new one before it has closed the one that it
// gave up; here there is never a second one for commands to the same server.
type sockets struct {
	mu   sync.Mutex
	open map[*socket]struct{}
	// awaited counts the attempts to connect to an address that are under way.
	awaited map[string]int
	// handshakes counts those that begin TLS.
	handshakes atomic.Int32
}

// await takes in that an attempt to connect begins (1) or has ended (-1).
func (ss *sockets) await(addr string, n int) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.awaited == nil {
		ss.awaited = map[string]int{}
	}
	ss.awaited[addr] += n
}

func (ss *sockets) isAwaited(addr string) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	return ss.awaited[addr] > 0
}

// socket is one of them. It has the methods of a TCP connection that go-redis looks for.
type socket struct {
	net.Conn
	addr     string
	commands bool
	sockets  *sockets
	greeted  bool
}

// SyscallConn lets go-redis see whether the server has closed an idle connection.
func (s *socket) SyscallConn() (syscall.RawConn, error) {
	c, ok := s.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return c.SyscallConn()
}

// noneLeft is what a server without a connection left says instead of a greeting. go-redis would take it for a server
// that is too old for its greeting.
var noneLeft = []byte("-ERR max number of clients")

var errNoConnectionLeft = errors.New("max number of clients reached")

func (s *socket) Read(p []byte) (int, error) {
	n, err := s.Conn.Read(p)
	if !s.greeted && n > 0 {
		s.greeted = true
		if bytes.HasPrefix(p[:n], noneLeft) {
			return 0, errNoConnectionLeft
		}
	}
	return n, err
}

func (s *socket) Close() error {
	s.sockets.mu.Lock()
	delete(s.sockets.open, s)
	s.sockets.mu.Unlock()
	return s.Conn.Close()
}

// closeThose closes the sockets that are meant.
func (ss *sockets) closeThose(meant func(*socket) bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for s := range ss.open {
		if meant(s) {
			delete(ss.open, s)
			_ = s.Conn.Close() // whoever uses it finds out
		}
	}
}

func (ss *sockets) closeAll() { ss.closeThose(func(*socket) bool { return true }) }

func (ss *sockets) add(s *socket) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if ss.open == nil {
		ss.open = map[*socket]struct{}{}
	}
	ss.open[s] = struct{}{}
}

// most is how many there are to the server that has most.
func (ss *sockets) most() (n int) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	count := map[string]int{}
	for s := range ss.open {
		count[s.addr]++
		n = max(n, count[s.addr])
	}
	return n
}

var errBeginTLS = errors.New("begin TLS")

// keepAlive finds a peer that has gone without a word within 45 s.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 5 * time.Second, Count: 3}

// dialer opens the connections of go-redis.
func (c *Client) dialer(secure *tls.Config) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if used, ok := ctx.Value(oneDial{}).(*atomic.Bool); ok {
			if used.Swap(true) {
				return nil, errDialedOnce
			}
			conn, err := c.dialServer(ctx, secure, network, addr, false)
			if err == nil {
				// A read does not look at its context.
				context.AfterFunc(ctx, func() { _ = conn.Close() })
			}
			return conn, err
		}
		if !c.sockets.isAwaited(addr) {
			return broken{errNotConnected}, nil
		}
		conn, err := c.dialServer(ctx, secure, network, addr, true)
		if err != nil {
			// To an error go-redis answers with another dial each second, and refuses commands until one succeeds.
			// It is told of the fault by the connection instead, so that the next command dials itself.
			return broken{err}, nil
		}
		return conn, nil
	}
}

// oneDial is the key of a *atomic.Bool in the context of a subscription. go-redis would replace a lost connection by
// itself, whether or not Redis must be left alone and the subscription is still wanted.
type oneDial struct{}

var errDialedOnce = errors.New("the connection of the subscription was lost")

func (c *Client) dialServer(ctx context.Context, secure *tls.Config, network, addr string, commands bool) (net.Conn, error) {
	if commands {
		c.sockets.closeThose(func(s *socket) bool { return s.commands && s.addr == addr })
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout+handshakeTimeout)
	defer cancel()
	defer context.AfterFunc(c.open, cancel)()
	d := net.Dialer{KeepAliveConfig: keepAlive, Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	s := &socket{Conn: conn, addr: addr, commands: commands, sockets: &c.sockets}
	c.sockets.add(s)
	if c.open.Err() != nil {
		_ = s.Close() // Close came in between
		return nil, errClosed
	}
	if secure == nil {
		return s, nil
	}
	c.sockets.handshakes.Add(1)
	defer c.sockets.handshakes.Add(-1)
	t := tls.Client(s, secure)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = t.Close() // the fault that matters is err
		return nil, fmt.Errorf("%w: %w", errBeginTLS, err)
	}
	return t, nil
}

// broken is a connection that could not be opened.
type broken struct{ err error }

// go-redis takes one layer off an error of the greeting.
func (b broken) fault() error { return fmt.Errorf("connect: %w", b.err) }

func (b broken) Read([]byte) (int, error)         { return 0, b.fault() }
func (b broken) Write([]byte) (int, error)        { return 0, b.fault() }
func (b broken) Close() error                     { return nil }
func (b broken) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (b broken) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (b broken) SetDeadline(time.Time) error      { return nil }
func (b broken) SetReadDeadline(time.Time) error  { return nil }
func (b broken) SetWriteDeadline(time.Time) error { return nil }

var _ net.Conn = broken{}
