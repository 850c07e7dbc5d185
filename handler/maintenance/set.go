package maintenance

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// SetConfig is what a Set works with.
type SetConfig struct {
	// Ping asks one node for a PING; see Config.
	Ping func(ctx context.Context, node string) error
	Log  *slog.Logger
}

// Set has a breaker for each node of a cluster, named by its address "host:port". It is safe for concurrent use.
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
	log     *slog.Logger
	journal *journal
	nodes   atomic.Pointer[map[string]*Breaker]

	mu      sync.Mutex // one change of nodes at a time
	run     context.Context
	stops   map[string]context.CancelFunc
	running sync.WaitGroup
}

// NewSet returns a Set without nodes. It does no I/O.
func NewSet(cfg SetConfig) *Set {
	s := &Set{ping: cfg.Ping, log: cfg.Log, journal: newJournal(cfg.Log), stops: map[string]context.CancelFunc{}}
	s.nodes.Store(&map[string]*Breaker{})
	return s
}

// SetNodes says which nodes there are now, by their addresses "host:port". A node that stays keeps its breaker.
func (s *Set) SetNodes(nodes []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old, now := *s.nodes.Load(), map[string]*Breaker{}
	for _, node := range nodes {
		if now[node] != nil {
			continue
		}
		if b := old[node]; b != nil {
			now[node] = b
			continue
		}
		now[node] = New(Config{
			Ping: func(ctx context.Context) error { return s.ping(ctx, node) },
			Log:  s.log.With("node", node),
		})
		s.start(node, now[node])
	}
	s.nodes.Store(&now)
	for node := range old {
		if now[node] == nil && s.stops[node] != nil {
			s.stops[node]()
			delete(s.stops, node)
		}
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
	for node, b := range *s.nodes.Load() {
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
func (s *Set) Breaker(node string) *Breaker { return (*s.nodes.Load())[node] }

// Open reports whether the breaker of any node is open, and when all may be closed. It takes no lock.
func (s *Set) Open() (retryAfter time.Duration, open bool) {
	for _, b := range *s.nodes.Load() {
		if after, isOpen := b.Open(); isOpen {
			retryAfter, open = max(retryAfter, after), true
		}
	}
	return retryAfter, open
}

// Notify takes a maintenance message in and gives it to the breakers that it is about.
func (s *Set) Notify(e Event) {
	s.journal.record(e)
	s.journal.write(e)
	for _, b := range s.about(e) {
		b.take(e)
	}
}

// about returns the breakers of the nodes that a message is about.
func (s *Set) about(e Event) []*Breaker {
	nodes := *s.nodes.Load()
	if len(nodes) == 1 {
		return slices.Collect(maps.Values(nodes))
	}
	var exact, atAddress, atPort []*Breaker
	for node, b := range nodes {
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
		return slices.Collect(maps.Values(nodes))
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

// SetState is how a Set is.
type SetState struct {
	// Nodes are the breakers' states, by node.
	Nodes map[string]State
	// Events, Counts and Dropped are those of all messages; see State.
	Events  []Event
	Counts  map[Type]int64
	Dropped int64
}

// State returns how the breakers are.
func (s *Set) State() SetState {
	state := SetState{Nodes: map[string]State{}}
	state.Events, state.Counts, state.Dropped = s.journal.last()
	for node, b := range *s.nodes.Load() {
		state.Nodes[node] = b.State()
	}
	return state
}
