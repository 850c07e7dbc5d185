package cosmosstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/identity"
)

const (
	// maxThrottled bounds how often a throttled request is sent again; the deadline of the call mostly ends it before.
	maxThrottled = 50
	// maxFaults bounds how often a request is sent again after another fault that passes.
	maxFaults = 3
	// firstDelay is the wait before the first of these; it doubles each time.
	firstDelay = 100 * time.Millisecond
)

// client is the official client with what is known of it.
type client struct {
	azure *azcosmos.Client
	// reached tells that the account answered, so that the client knows its regions and may be kept.
	reached atomic.Bool
}

// newClient makes the client without I/O. Its own retries after a throttled request are turned off: they would sleep
// past the deadline, and they would not be counted.
func (s *Store) newClient() (*client, error) {
	endpoint, err := url.Parse(s.config.Endpoint)
	if err != nil || endpoint.Host == "" || endpoint.Scheme != "https" && endpoint.Scheme != "http" {
		return nil, &setupError{"COSMOS_ENDPOINT is not the URL of an account, such as https://name.documents.azure.com:443/: " +
			"az cosmosdb show --name <account> --resource-group <group> --query documentEndpoint"}
	}
	if s.config.Database == "" {
		return nil, &setupError{"COSMOS_DATABASE is not set; it names the database, such as presence"}
	}
	c := &client{}
	options := &azcosmos.ClientOptions{ClientOptions: azcore.ClientOptions{
		Retry:     policy.RetryOptions{MaxRetries: -1},
		Transport: &http.Client{Timeout: s.config.AttemptTimeout, Transport: &transport{store: s, client: c}},
		Telemetry: policy.TelemetryOptions{ApplicationID: "userconnectivity"},
	}}
	if s.config.Key != "" {
		key, err := azcosmos.NewKeyCredential(string(s.config.Key))
		if err != nil {
			return nil, &setupError{"COSMOS_KEY is not base64, so it is not the key of an account: " + s.keysCommand()}
		}
		c.azure, err = azcosmos.NewClientWithKey(s.config.Endpoint, key, options)
		return c, err
	}
	if s.config.Credential == nil {
		return nil, &setupError{"neither COSMOS_KEY nor an Entra credential is set"}
	}
	inner, err := s.config.Credential()
	if err != nil {
		return nil, &setupError{fmt.Sprintf("the Entra credential for Cosmos DB cannot be made: %v", err)}
	}
	c.azure, err = azcosmos.NewClient(s.config.Endpoint, credential{inner, s}, options)
	return c, err
}

// credential remembers what explain needs to know: why there is no token, and whom the last one was for.
type credential struct {
	inner azcore.TokenCredential
	store *Store
}

// GetToken implements azcore.TokenCredential.
func (c credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := c.inner.GetToken(ctx, o)
	if err != nil {
		noToken := &tokenError{err}
		c.store.noToken.Store(noToken)
		return token, noToken
	}
	oid := identity.ObjectID(token.Token)
	c.store.principal.Store(&oid)
	c.store.noToken.Store(nil)
	return token, nil
}

// operation names a request: by kind for the charges, in words for errors.
type operation struct{ kind, doing, container string }

// request sends one request and returns its answer. It may still run when nobody waits for it any more, so it changes
// nothing outside.
type request[T any] func(context.Context, *client) (T, error)

// onDocument is a request on documents of one partition.
type onDocument func(context.Context, *azcosmos.ContainerClient, azcosmos.PartitionKey) (azcosmos.ItemResponse, error)

// document runs a request on a document of the container that op names.
func (s *Store) document(ctx context.Context, op operation, pk string, do onDocument) (azcosmos.ItemResponse, error) {
	return call(ctx, s, op, func(ctx context.Context, c *client) (azcosmos.ItemResponse, error) {
		container, err := c.azure.NewContainer(s.config.Database, op.container)
		if err != nil {
			return azcosmos.ItemResponse{}, err
		}
		return do(ctx, container, azcosmos.NewPartitionKeyString(pk))
	})
}

// call runs one request, again after a fault that passes: every request of this package may be sent twice, as each
// write is conditional or has the same outcome. It waits as long as a throttled answer asks for, unless the deadline
// comes first.
func call[T any](ctx context.Context, s *Store, op operation, do request[T]) (T, error) {
	ctx = withRequest(ctx, op.kind)
	faults, throttled := 0, 0
	for {
		answer, err := attempt(ctx, s, do)
		if err == nil || isAnswer(err) {
			return answer, err
		}
		if isRefusal(err) {
			return answer, &refusal{fmt.Sprintf("%s: the account refused the request (%d)", op.doing, status(err)), err}
		}
		var delay time.Duration
		again := false
		switch {
		case ctx.Err() != nil || !repeatable(err):
		case isStatus(err, http.StatusTooManyRequests):
			throttled++
			delay, again = retryAfter(err), throttled <= maxThrottled
		default:
			faults++
			delay, again = firstDelay<<(faults-1), faults <= maxFaults
		}
		if deadline, ok := ctx.Deadline(); !again || ok && time.Until(deadline) < delay {
			return answer, s.explain(ctx, op, err)
		}
		// A little later than asked for, and not all at once.
		timer := time.NewTimer(delay + time.Duration(rand.Int64N(int64(delay)/4+1)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return answer, s.explain(ctx, op, errors.Join(ctx.Err(), err))
		case <-s.life.Done():
			timer.Stop()
			return answer, eventlog.ErrClosed
		}
	}
}

// attempt runs one request. The first request of a client also asks for the regions of the account, and that ignores
// the end of ctx: so it runs on the side until the account was reached.
func attempt[T any](ctx context.Context, s *Store, do request[T]) (answer T, err error) {
	if err := ctx.Err(); err != nil {
		return answer, err
	}
	c, err := s.connect()
	if err != nil {
		return answer, err
	}
	if c.reached.Load() {
		return do(ctx, c)
	}
	type result struct {
		answer T
		err    error
	}
	done := make(chan result, 1)
	if !s.start(func() {
		answer, err := do(ctx, c)
		done <- result{answer, err}
	}) {
		return answer, eventlog.ErrClosed
	}
	select {
	case r := <-done:
		answer, err = r.answer, r.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		s.discard(c)
	}
	return answer, err
}

// start runs f in a goroutine that Close waits for.
func (s *Store) start(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.work.Go(f)
	return true
}

// Charge is what the requests of one kind have cost since the start.
type Charge struct {
	// Requests counts those that the account answered, Throttled those of them that it refused with 429.
	Requests, Throttled int64
	// RequestUnits is the sum of the charges that the answers told, those of refused requests included.
	RequestUnits float64
}

// Charges returns what was charged for each kind of request: account, container read, database read, and event, user
// or profile with create, read, replace, patch, upsert, delete or query.
func (s *Store) Charges() map[string]Charge {
	s.meter.mu.Lock()
	defer s.meter.mu.Unlock()
	charges := make(map[string]Charge, len(s.meter.charges))
	for kind, c := range s.meter.charges {
		charges[kind] = c
	}
	return charges
}

// inRequest is what is known of a request of call, whose context has it: the official client sends it again by itself.
type inRequest struct {
	kind string

	mu       sync.Mutex
	ofRegion int // answers of isOfRegion
	fault    error
}

type requestKey struct{}

func withRequest(ctx context.Context, kind string) context.Context {
	return context.WithValue(ctx, requestKey{}, &inRequest{kind: kind})
}

// requestOf returns the request of a context, an empty one where it has none.
func requestOf(ctx context.Context) *inRequest {
	if r, ok := ctx.Value(requestKey{}).(*inRequest); ok {
		return r
	}
	return &inRequest{}
}

// failed remembers why an attempt got no answer. That its time was over tells nothing.
func (r *inRequest) failed(err error) {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fault = err
}

func (r *inRequest) lastFault() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.fault
}

// maxOfRegion bounds the answers of isOfRegion that the official client sees for one request. It looks for the regions
// anew at each, waits a second and sends the request again, 120 times: longer than any caller waits.
const maxOfRegion = 1

// enough reports whether the official client saw enough of such answers, and counts this one.
func (r *inRequest) enough(answer *http.Response) bool {
	if !isOfRegion(answer.StatusCode, answer.Header.Get("x-ms-substatus")) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ofRegion++
	return r.ofRegion > maxOfRegion
}

type meter struct {
	mu      sync.Mutex
	charges map[string]Charge
}

func (m *meter) add(kind string, answer *http.Response) {
	ru, err := strconv.ParseFloat(answer.Header.Get("x-ms-request-charge"), 64)
	if err != nil {
		ru = 0 // the account's own properties are free
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.charges == nil {
		m.charges = map[string]Charge{}
	}
	c := m.charges[kind]
	c.Requests++
	c.RequestUnits += ru
	if answer.StatusCode == http.StatusTooManyRequests {
		c.Throttled++
	}
	m.charges[kind] = c
}

// transport sees every request of a client: it counts the charges, learns that the account was reached, and ends
// requests when the store is closed. It also bounds how often the official client sends a request again by itself.
type transport struct {
	store  *Store
	client *client
}

// RoundTrip sends one request.
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.store.life.Err() != nil {
		return nil, eventlog.ErrClosed
	}
	ctx, cancel := context.WithCancel(r.Context())
	stop := context.AfterFunc(t.store.life, cancel)
	answer, err := t.store.config.Transport.RoundTrip(r.WithContext(ctx))
	request := requestOf(r.Context())
	if err != nil {
		stop()
		cancel()
		request.failed(err)
		return nil, err
	}
	kind := request.kind
	if r.URL.Path == "" || r.URL.Path == "/" {
		kind = "account"
	} else {
		t.client.reached.Store(true) // the client asks for its regions first
	}
	t.store.meter.add(kind, answer)
	answer.Body = &body{answer.Body, func() { stop(); cancel() }}
	if request.enough(answer) {
		// An error, where the official client would send an answer's request again.
		return nil, runtime.NewResponseError(answer)
	}
	return answer, nil
}

// body ends the request's context when it was read.
type body struct {
	readCloser
	end func()
}

type readCloser interface {
	Read(p []byte) (int, error)
	Close() error
}

// Close closes the body.
func (b *body) Close() error {
	defer b.end()
	return b.readCloser.Close()
}
