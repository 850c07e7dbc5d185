package localhost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"time"

	"github.com/google/uuid"
)

// hostVersion is the version of the Functions host whose behaviour was recorded.
const hostVersion = "4.1037.0.0"

const (
	headerInvocationID = "X-Azure-Functions-InvocationId"
	headerHostVersion  = "X-Azure-Functions-HostVersion"
	maxReplyBytes      = 100 << 20
)

var (
	// errNotDelivered is returned by invoke when the handler never saw the call.
	errNotDelivered = errors.New("the handler could not be reached")
	// errStopping is returned by invoke when the host stops before the call has ended.
	errStopping        = errors.New("the host stops")
	errFunctionTimeout = errors.New("functionTimeout is over")
)

// newHandlerTransport returns the transport of all requests to the handler. It adds nothing to them.
func newHandlerTransport() *http.Transport {
	return &http.Transport{
		DisableCompression:  true,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     90 * time.Second,
	}
}

// invoke calls a function that is not HTTP and returns nil when that succeeded by the rules of the Functions
// host. It waits for a handler that is down. A call that has no result in functionTimeout, and one whose reply
// the Functions host does not understand as a result, makes the handler restart.
func (h *Host) invoke(name string, e envelope) error {
	generation, err := h.process.waitReady(h.calls)
	if err != nil {
		return fmt.Errorf("call %s: %w: %w", name, errNotDelivered, err)
	}
	ctx, cancel := h.calls, context.CancelFunc(func() {})
	if timeout := h.app.functionTimeout; timeout > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, errFunctionTimeout)
	}
	defer cancel()
	hangs, err := h.post(ctx, name, e)
	if hangs {
		// Nobody completes the call: it stands until the time is over or the handler has ended.
		select {
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-h.process.ended(generation):
			err = errors.New("the handler ended")
		}
		err = fmt.Errorf("the reply is empty or null, which completes nothing: %w", err)
	}
	if errors.Is(err, errFunctionTimeout) {
		h.log.Error("function timed out: the handler is killed", "function", name, "timeout", h.app.functionTimeout)
		h.process.restart(generation)
	}
	if err != nil {
		return fmt.Errorf("call %s: %w", name, err)
	}
	return nil
}

// post sends the call and judges the reply.
func (h *Host) post(ctx context.Context, name string, e envelope) (hangs bool, err error) {
	// A reader of unknown length is sent in chunks, as by the Functions host.
	body := struct{ io.Reader }{bytes.NewReader(e.json())}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.process.url()+"/"+name, body)
	if err != nil {
		return false, err
	}
	req.Header.Set(headerHostVersion, hostVersion)
	req.Header.Set(headerInvocationID, uuid.NewString())
	req.Header.Set("User-Agent", "Azure-Functions-Host/"+hostVersion)
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	resp, err := h.transport.RoundTrip(req)
	if err != nil {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if isDialError(err) {
			return false, fmt.Errorf("%w: %w", errNotDelivered, err)
		}
		return false, err
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxReplyBytes))
	if err != nil {
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		return false, fmt.Errorf("read reply: %w", err)
	}
	logs, hangs, err := judge(resp.StatusCode, resp.Header.Get("Content-Type"), reply)
	for _, line := range logs {
		h.log.Info(line, "function", name)
	}
	return hangs, err
}

// judge decides what a reply means: logs of a call that succeeded, a call that hangs, or why it failed.
func judge(status int, contentType string, reply []byte) (logs []string, hangs bool, err error) {
	if status < 200 || status > 299 {
		return nil, false, fmt.Errorf("the reply has status %d", status)
	}
	if len(reply) == 0 {
		return nil, true, nil
	}
	if media, _, _ := mime.ParseMediaType(contentType); media != "application/json" && media != "text/json" {
		return nil, false, fmt.Errorf("the reply has content type %q, not application/json", contentType)
	}
	if string(bytes.TrimSpace(reply)) == "null" {
		return nil, true, nil
	}
	var result struct {
		Outputs     map[string]any
		Logs        []string
		ReturnValue any
	}
	if err := json.Unmarshal(reply, &result); err != nil {
		return nil, false, fmt.Errorf("the reply is not a result: %w", err)
	}
	return result.Logs, false, nil
}

// isDialError reports whether err says that no connection was made, so that nothing was sent.
func isDialError(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
