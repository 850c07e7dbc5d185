// Package cosmosstore is the event log in Azure Cosmos DB: events with the history of their status, users records
// and profiles, on the official client.
//
// Requests and request units (RU) for one event on the normal path, for documents of about 1 KB:
//
//	relay   detected, queued      create the event                         1 request    5 RU
//	worker  processing, done      patch the event, if it is as created     1 request   10 RU
//	worker  users record          patch the user, if its epoch is lower    1 request   10 RU
//
// A create that finds the event (409) and a patch whose condition does not hold (412) cost about 1 RU and go on
// with a read (1 RU) and a replace of the version that was read (10 RU), as often as another writer comes in
// between. A repeated write ends after the read. Charges counts what was really charged. The figures hold for
// containers that index only what is queried: /epoch/? in events, nothing in users and profiles.
//
// The containers are made by the deployment: events (partition key /pk, default ttl = retention), users (/id),
// profiles (/id). With the account's default consistency (Session) a read may miss a write of another process by
// some milliseconds; a write never does, since each one is conditional.
package cosmosstore

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"

	"userconnectivity/handler/eventlog"
)

// Secret is a text that is never printed.
type Secret string

// String hides the secret.
func (Secret) String() string { return "[redacted]" }

// GoString hides the secret.
func (Secret) GoString() string { return "[redacted]" }

// MarshalText hides the secret.
func (Secret) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// LogValue hides the secret.
func (Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// Config says where the containers are. Exactly one of Key and Credential is set.
type Config struct {
	// Endpoint is the URL of the account, such as https://name.documents.azure.com:443/.
	Endpoint string
	// Key is the primary or secondary key of the account.
	Key Secret
	// Credential makes the Entra credential; it is called at the first use.
	Credential func() (azcore.TokenCredential, error)
	Database   string
	Containers Containers
	// Timeout bounds one call of a method, retries included. Default: 30 s; an earlier deadline of the caller's
	// context counts.
	Timeout time.Duration
	// AttemptTimeout bounds one request. Default: 10 s.
	AttemptTimeout time.Duration
	// InFlight bounds the requests of one Write at the same time. Default: 32.
	InFlight int
	// Transport carries the requests. Default: a transport with connections for InFlight requests.
	Transport http.RoundTripper
}

// Containers are the names of the containers. Default: events, users, profiles.
type Containers struct{ Events, Users, Profiles string }

// Store is the event log in one account. It is safe for concurrent use. Its methods return an error that wraps
// eventlog.ErrUnavailable for a fault that is none of the event (throttled beyond the deadline, no connection, no right,
// no container), and eventlog.ErrClosed after Close. The error names what is wrong and the command that mends it.
type Store struct {
	config Config
	meter  meter

	// life ends with Close, and with it every request; work waits for the goroutines.
	life context.Context
	end  context.CancelFunc
	work sync.WaitGroup

	repaired atomic.Int64

	// checked tells that the containers were found as they should be.
	checked atomic.Bool
	// noToken is why the credential gave no token, nil once it does; principal is the object id of the identity, as the
	// last token has it. Both are for errors.
	noToken   atomic.Pointer[tokenError]
	principal atomic.Pointer[string]

	mu     sync.Mutex
	client *client // nil until the first use, and after one that failed
	closed bool
}

// New returns a store. It does no I/O: the client is made at the first use, and one that never reached the account
// is not kept.
func New(c Config) *Store {
	if c.Containers.Events == "" {
		c.Containers.Events = "events"
	}
	if c.Containers.Users == "" {
		c.Containers.Users = "users"
	}
	if c.Containers.Profiles == "" {
		c.Containers.Profiles = "profiles"
	}
	if c.Timeout <= 0 {
		c.Timeout = 30 * time.Second
	}
	if c.AttemptTimeout <= 0 {
		c.AttemptTimeout = 10 * time.Second
	}
	if c.InFlight <= 0 {
		c.InFlight = 32
	}
	if c.Transport == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.MaxIdleConnsPerHost = 2 * c.InFlight
		transport.MaxIdleConns = 4 * c.InFlight
		c.Transport = transport
	}
	life, end := context.WithCancel(context.Background())
	return &Store{config: c, life: life, end: end}
}

// Close ends the requests that run, and waits for them. A second call does nothing.
func (s *Store) Close() error {
	s.mu.Lock()
	c := s.client
	s.client, s.closed = nil, true
	s.mu.Unlock()
	s.end()
	s.work.Wait()
	if c != nil {
		c.azure.Close()
	}
	if idle, ok := s.config.Transport.(interface{ CloseIdleConnections() }); ok {
		idle.CloseIdleConnections()
	}
	return nil
}

// Ping asks the account for an event that does not exist. Until that has worked once it also checks that the
// containers are there and partitioned as this package needs them.
func (s *Store) Ping(ctx context.Context) error {
	ctx, done := s.begin(ctx)
	defer done()
	if !s.checked.Load() {
		for _, c := range []struct{ name, path string }{
			{s.config.Containers.Events, eventsKeyPath}, {s.config.Containers.Users, usersKeyPath}, {s.config.Containers.Profiles, profilesKeyPath},
		} {
			if err := s.checkContainer(ctx, c.name, c.path); err != nil {
				return err
			}
		}
		s.checked.Store(true)
		return nil
	}
	const id = "AAAAAAAAAAAAA-AAAAAAAAAAAAAAAA"
	if _, err := s.readEvent(ctx, id, nil); err != nil && !isStatus(err, http.StatusNotFound) {
		return err
	}
	return nil
}

func (s *Store) checkContainer(ctx context.Context, name, path string) error {
	op := operation{"container read", "read container " + name, name}
	answer, err := call(ctx, s, op, func(ctx context.Context, c *client) (azcosmos.ContainerResponse, error) {
		container, err := c.azure.NewContainer(s.config.Database, name)
		if err != nil {
			return azcosmos.ContainerResponse{}, err
		}
		return container.Read(ctx, nil)
	})
	if isStatus(err, http.StatusNotFound) {
		return fmt.Errorf("%s: %w: %w", op.doing, eventlog.ErrUnavailable, s.missing(ctx, name))
	}
	if err != nil {
		return err
	}
	if paths := answer.ContainerProperties.PartitionKeyDefinition.Paths; len(paths) != 1 || paths[0] != path {
		return fmt.Errorf("%s: %w: %w", op.doing, eventlog.ErrUnavailable, &setupError{fmt.Sprintf("container %s of database %s has the partition key"+
			" %v, this program needs %s, and the key of a container cannot be changed: name another container, or delete this one and run: %s",
			name, s.config.Database, paths, path, s.createContainerCommand(name))})
	}
	return nil
}

// begin gives a call its deadline.
func (s *Store) begin(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.config.Timeout)
}

// connect returns the client, and makes it where there is none. It does no I/O.
func (s *Store) connect() (*client, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, eventlog.ErrClosed
	}
	if s.client != nil {
		return s.client, nil
	}
	c, err := s.newClient()
	if err != nil {
		return nil, err
	}
	s.client = c
	return c, nil
}

// discard drops a client that never reached the account: it would remember for minutes that the account could not
// be reached.
func (s *Store) discard(c *client) {
	if c.reached.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.client == c {
		s.client = nil
		c.azure.Close()
	}
}
