package telemetry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// client posts spans as OTLP/HTTP in binary protobuf. It is an otlptrace.Client: the official one for HTTP brings gRPC
// with it, 110 packages and 5.6 MB of a binary that never speaks it.
// See https://opentelemetry.io/docs/specs/otlp/#otlphttp.
type client struct {
	endpoint string
	headers  http.Header
	timeout  time.Duration
	http     *http.Client
	ended    context.Context //nolint:containedctx // the end of the client, whichever call is under way
	end      context.CancelFunc
}

const (
	// firstPause and maxPause bound the wait between two tries, twice as long each time.
	firstPause = 500 * time.Millisecond
	maxPause   = 5 * time.Second
	// maxReply bounds what is read of an answer, so that its connection can be used again.
	maxReply = 64 << 10
)

func newClient(c Config) *client {
	headers := http.Header{"Content-Type": {"application/x-protobuf"}, "User-Agent": {"userconnectivity/" + c.Version}}
	for name, value := range c.Headers {
		headers.Set(name, value)
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxConnsPerHost = 2
	cl := &client{endpoint: c.Endpoint, headers: headers, timeout: c.Timeout, http: &http.Client{
		Transport: transport,
		// The headers may hold a key, and are for nobody else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	cl.ended, cl.end = context.WithCancel(context.Background())
	return cl
}

// Start implements otlptrace.Client. There is nothing to start.
func (c *client) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (c *client) Stop(context.Context) error {
	c.end()
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces posts spans. While the receiver is away or asks for it, they are posted again, until the timeout.
func (c *client) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	// The request is a message with this one field in the same place; its own type comes with gRPC.
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return fmt.Errorf("encode spans: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	defer context.AfterFunc(c.ended, cancel)()
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		after, err := c.post(ctx, body)
		if err == nil || after < 0 {
			return err
		}
		timer := time.NewTimer(max(pause, after))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// never is when to try again what will not be taken.
const never = -1

// post posts once. With an error it returns after which time it may be tried again at the earliest, or never.
func (c *client) post(ctx context.Context, body []byte) (after time.Duration, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.endpoint, bytes.NewReader(body))
	if err != nil {
		return never, errors.New("the endpoint is no URL")
	}
	request.Header = c.headers
	response, err := c.http.Do(request)
	if err != nil {
		var at *url.Error
		if errors.As(err, &at) {
			err = at.Err // who reads the log knows the URL
		}
		return 0, fmt.Errorf("post to the receiver: %w", err)
	}
	defer response.Body.Close()
	_, _ = io.CopyN(io.Discard, response.Body, maxReply)
	switch status := response.StatusCode; {
	case status >= 200 && status < 300:
		return 0, nil
	case status == http.StatusTooManyRequests || status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout:
		seconds, _ := strconv.Atoi(response.Header.Get("Retry-After")) // a date is as none
		return time.Duration(max(seconds, 0)) * time.Second, fmt.Errorf("the receiver answered %d", status)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return never, fmt.Errorf("the receiver answered %d; check OTEL_EXPORTER_OTLP_HEADERS", status)
	default:
		return never, fmt.Errorf("the receiver answered %d; check OTEL_EXPORTER_OTLP_ENDPOINT, to which /v1/traces is added", status)
	}
}
