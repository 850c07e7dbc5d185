package maintenance

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// SetConfig is what a Set works with.
type SetConfig struct {
	// Ping asks one node for a PING, the one server for node ""; see Config.
	Ping func(ctx context.Context, node string) error
	// Broke is called each time that failures have opened the breaker of a node; see Config. It may be nil.
	Broke func(node string)
	Log   *slog.Logger
}

// Set has a breaker for each primary of a cluster, named by its address "host:port", or one for a single server.
// It is safe for concurrent use.
//
// A message opens the breaker of the node that it names, by address and port, and no other. Servers leave the
// address out, and clients may see other addresses than the server does; so a port that only one node has is
// enough when the address is missing or is none of any node. A message that names neither address nor port opens
// all: any node may go, and a needless opening only defers for 10 seconds. One that names a node which is not in
// the set (a replica, a node that left) opens none. The end of a maintenance, whose node may have changed its
// place, goes to the node that it names, or else to all: it closes nothing whose PING does not answer.
// In a set of one node every message is about that node.
type Set struct {
	ping    func(ctx context.Context, node string) error
	broke   func(node string)
	log     *slog.Logger
	journal *journal
	nodes   atomic.Pointer[members]

	mu      sync.Mutex // one change of nodes at a time
	run     context.Context
	stops   map[string]context.CancelFunc
	running sync.WaitGroup
	gone    int64 // how often the breakers opened that are no longer in the set
}

// members are the breakers of a set. They do not change.
type members struct {
	byNode map[string]*Breaker
	all    []*Breaker
}

// oneServer stands for the single server, which needs no name. Where a node is asked for, it stands for all.
const oneServer = ""

// NewSet returns a Set for a single server, until SetNodes says more. It does no I/O.
func NewSet(cfg SetConfig) *Set {
	s := &Set{ping: cfg.Ping, broke: cfg.Broke, log: cfg.Log, journal: newJournal(cfg.Log), stops: map[string]context.CancelFunc{}}
	b := s.newBreaker(oneServer)
	s.nodes.Store(&members{byNode: map[string]*Breaker{oneServer: b}, all: []*Breaker{b}})
	return s
}

func (s *Set) newBreaker(node string) *Breaker {
	log := s.log
	if node != oneServer {
		log = log.With("node", node)
	}
	cfg := Config{Log: log, Ping: func(ctx context.Context) error { return s.ping(ctx, node) }}
	if s.broke != nil {
		cfg.Broke = func() { s.broke(node) }
	}
	return New(cfg)
}

// SetNodes says which primaries there are now, by their addresses "host:port"; none stands for a single server.
// A node that stays keeps its breaker.
func (s *Set) SetNodes(nodes []string) {
	if len(nodes) == 0 {
		nodes = []string{oneServer}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, now := s.nodes.Load(), &members{byNode: map[string]*Breaker{}}
	changed := false
	for _, node := range nodes {
		if now.byNode[node] != nil {
			continue
		}
		b := old.byNode[node]
		if b == nil {
			b, changed = s.newBreaker(node), true
			s.start(node, b)
		}
		now.byNode[node], now.all = b, append(now.all, b)
	}
	for node, b := range old.byNode {
		if now.byNode[node] != nil {
			continue
		}
		changed = true
		s.gone += b.State().Opened
		if stop := s.stops[node]; stop != nil {
			stop()
			delete(s.stops, node)
		}
	}
	if changed {
		s.nodes.Store(now)
		s.log.Info("the circuit breakers follow the primaries of Redis", "nodes", slices.Sorted(maps.Keys(now.byNode)))
	}
}

// start runs a node's breaker while the set runs.
func (s *Set) start(node string, b *Breaker) {
	if s.run == nil || s.run.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(s.run)
	s.stops[node] = stop
	s.running.Go(func() { b.Run(ctx) })
}

// Run runs the breakers until ctx ends; see Breaker.Run.
func (s *Set) Run(ctx context.Context) {
	s.mu.Lock()
	s.run = ctx
	for node, b := range s.nodes.Load().byNode {
		s.start(node, b)
	}
	s.mu.Unlock()
	s.journal.deliver(ctx)
	s.mu.Lock() // a change of nodes that began before is done
	for _, stop := range s.stops {
		stop()
	}
	s.mu.Unlock()
	s.running.Wait()
}

// Breaker returns the breaker of a node, nil for a node that is not in the set.
func (s *Set) Breaker(node string) *Breaker { return s.nodes.Load().byNode[node] }

// Open reports whether the breaker of a node is open, and when the caller may try again; of node "" whether those
// of all nodes are, and when the first may be closed. A node that is not in the set is never open. It takes no lock.
func (s *Set) Open(node string) (retryAfter time.Duration, open bool) {
	m := s.nodes.Load()
	if node != oneServer {
		if b := m.byNode[node]; b != nil {
			return b.Open()
		}
		return 0, false
	}
	for i, b := range m.all {
		after, isOpen := b.Open()
		if !isOpen {
			return 0, false
		}
		if i == 0 || after < retryAfter {
			retryAfter = after
		}
	}
	return retryAfter, true
}

// AnyOpen reports whether the breaker of at least one node is open. It takes no lock.
func (s *Set) AnyOpen() bool {
	for _, b := range s.nodes.Load().all {
		if _, open := b.Open(); open {
			return true
		}
	}
	return false
}

// Failed says that a command to a node failed on its connection, or to all for node ""; see Breaker.Failed. What
// happens to a node that is not in the set, such as a replica, is nobody's fault.
func (s *Set) Failed(node string, err error) {
	for _, b := range s.of(node) {
		b.Failed(err)
	}
}

// Lost says that an established connection to a node broke; see Breaker.ConnectionLost.
func (s *Set) Lost(node string) {
	for _, b := range s.of(node) {
		b.ConnectionLost()
	}
}

// Succeeded says that a node answered a command. Without failures before it takes no lock.
func (s *Set) Succeeded(node string) {
	m := s.nodes.Load()
	if b := m.byNode[node]; b != nil {
		b.Succeeded()
	}
}

// of returns the breaker of a node; of node "" those of all.
func (s *Set) of(node string) []*Breaker {
	m := s.nodes.Load()
	if node == oneServer {
		return m.all
	}
	if b := m.byNode[node]; b != nil {
		return []*Breaker{b}
	}
	return nil
}

// Notify takes a maintenance message in and gives it to the breakers that it is about. In a cluster a message
// reaches every node, and a client that listens to all gets it from each: copies count once.
func (s *Set) Notify(e Event) {
	if len(s.nodes.Load().all) > 1 && s.journal.hasCopy(e) {
		return
	}
	s.notify(e, s.about(e))
}

// Announced takes in one of Redis's own maintenance notifications, which came over a connection to a node, and is
// about that node.
func (s *Set) Announced(node string, notification []any) {
	s.notify(ParsePush(notification, time.Now()), s.of(node))
}

func (s *Set) notify(e Event, about []*Breaker) {
	s.journal.record(e)
	s.journal.write(e)
	for _, b := range about {
		b.take(e)
	}
}

// about returns the breakers of the nodes that a message is about.
func (s *Set) about(e Event) []*Breaker {
	m := s.nodes.Load()
	if len(m.all) == 1 {
		return m.all
	}
	var exact, atAddress, atPort []*Breaker
	for node, b := range m.byNode {
		host, port := splitNode(node)
		sameAddress := e.Address.IsValid() && host == e.Address
		samePort := port != 0 && (port == e.SSLPort || port == e.NonSSLPort)
		switch {
		case sameAddress && samePort:
			exact = append(exact, b)
		case sameAddress:
			atAddress = append(atAddress, b)
		case samePort:
			atPort = append(atPort, b)
		}
	}
	namesPort := e.SSLPort != 0 || e.NonSSLPort != 0
	isEnd := e.Type == Ended || e.Type == FailoverComplete
	switch {
	case len(exact) > 0:
		return exact
	case len(atAddress) > 0 && !namesPort:
		return atAddress
	case len(atAddress) == 0 && (len(atPort) == 1 || len(atPort) > 1 && !e.Address.IsValid()):
		return atPort
	case !e.Address.IsValid() && !namesPort, isEnd:
		return m.all
	}
	return nil
}

// splitNode reads "host:port". The address is not valid when host is a name, the port 0 when there is none.
func splitNode(node string) (host netip.Addr, port int) {
	name, digits, _ := net.SplitHostPort(node) // what is no address matches no message
	host, _ = netip.ParseAddr(name)
	setPort(&port, digits)
	return host.Unmap().WithZone(""), port
}

// Subscribe has call called with every message from now on; see Breaker.Subscribe.
func (s *Set) Subscribe(call func(Event)) (cancel func()) { return s.journal.subscribe(call) }

// State returns how the breakers are together, and each of them where they have names. The status is open while one
// is; Since and Reason are of those that are open, or of the last that was; the counts are sums.
func (s *Set) State() State {
	var all State
	s.mu.Lock()
	m := s.nodes.Load()
	all.Opened = s.gone
	s.mu.Unlock()
	if m.byNode[oneServer] == nil {
		all.Nodes = make(map[string]State, len(m.all))
	}
	all.Status = Closed
	var reasons []string
	var last State // the last that was open
	for _, node := range slices.Sorted(maps.Keys(m.byNode)) {
		one := m.byNode[node].State()
		if all.Nodes != nil {
			all.Nodes[node] = one
		}
		if one.Status == Open {
			if all.Status == Closed || one.Since.Before(all.Since) {
				all.Since = one.Since
			}
			all.Status = Open
			reasons = append(reasons, named(node, one.Reason))
		} else if one.Since.After(last.Since) {
			last, last.Reason = one, named(node, one.Reason)
		}
		all.Opened += one.Opened
		all.Failures += one.Failures
		all.Scheduled, all.Next = sooner(all.Scheduled, one.Scheduled), sooner(all.Next, one.Next)
	}
	all.Reason = strings.Join(reasons, "; ")
	if all.Status == Closed {
		all.Since, all.Reason = last.Since, last.Reason
	}
	all.Events, all.Counts, all.Dropped = s.journal.last()
	return all
}

// named puts the node in front of a reason.
func named(node, reason string) string {
	if node == oneServer {
		return reason
	}
	return node + ": " + reason
}

// sooner returns the earlier of two times, of which zero is none.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
