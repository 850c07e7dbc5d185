package cosmosstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"

	"userconnectivity/handler/eventlog"
)

// noOwner is the substatus of a 404 for a document whose container or database does not exist.
const noOwner = "1003"

// setupError is a fault of the settings or of the deployment; its text says how to mend it.
type setupError struct{ text string }

// Error returns the text.
func (e *setupError) Error() string { return e.text }

func responseOf(err error) *azcore.ResponseError {
	var answer *azcore.ResponseError
	if errors.As(err, &answer) {
		return answer
	}
	return nil
}

func isStatus(err error, status int) bool {
	answer := responseOf(err)
	return answer != nil && answer.StatusCode == status
}

// isAnswer tells the outcomes that the callers of call decide about from faults: the document is there, is not
// there, or is another version.
func isAnswer(err error) bool {
	return isStatus(err, http.StatusConflict) || isStatus(err, http.StatusPreconditionFailed) ||
		isStatus(err, http.StatusNotFound) && header(responseOf(err), "x-ms-substatus") != noOwner
}

// isRefusal tells that the account does not take this request, however often it is sent.
func isRefusal(err error) bool {
	return isStatus(err, http.StatusBadRequest) || isStatus(err, http.StatusRequestEntityTooLarge)
}

// refusal is such an answer without the text of the service, which is long and repeats the request.
type refusal struct {
	text  string
	cause error
}

// Error returns the text.
func (e *refusal) Error() string { return e.text }

// Unwrap returns the answer.
func (e *refusal) Unwrap() error { return e.cause }

// passes reports whether the same request may succeed later.
func passes(err error) bool {
	var setup *setupError
	if errors.As(err, &setup) || errors.Is(err, eventlog.ErrClosed) || errors.Is(err, context.Canceled) {
		return false
	}
	answer := responseOf(err)
	if answer == nil {
		return true // no connection, no answer in time, no token
	}
	switch answer.StatusCode {
	case http.StatusRequestTimeout, http.StatusGone, http.StatusTooManyRequests, 449, // 449: retry with the same request
		http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func header(answer *azcore.ResponseError, name string) string {
	if answer.RawResponse == nil {
		return ""
	}
	return answer.RawResponse.Header.Get(name)
}

// retryAfter is how long a throttled request has to wait.
func retryAfter(err error) time.Duration {
	if ms, parseErr := strconv.Atoi(header(responseOf(err), "x-ms-retry-after-ms")); parseErr == nil && ms >= 0 {
		return time.Duration(ms) * time.Millisecond
	}
	return firstDelay
}

// session returns the session token of a refusal: a read with it sees the write that caused the refusal.
func session(err error) *string {
	answer := responseOf(err)
	if answer == nil {
		return nil
	}
	if token := header(answer, "x-ms-session-token"); token != "" {
		return &token
	}
	return nil
}

// explain turns the fault of a request into an error that says what is wrong and, where somebody has to act, with
// which command. The text of the service is left out, as in a refusal.
func (s *Store) explain(ctx context.Context, op operation, err error) error {
	answer := responseOf(err)
	var setup *setupError
	switch {
	case errors.Is(err, eventlog.ErrClosed) || s.life.Err() != nil:
		return eventlog.ErrClosed
	case errors.As(err, &setup) || errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", op.doing, err)
	case answer == nil && errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w: no answer in time from %s: %w", op.doing, eventlog.ErrUnavailable, s.config.Endpoint, err)
	case answer == nil:
		return fmt.Errorf("%s: %w: %s cannot be reached (if COSMOS_ENDPOINT is wrong: az cosmosdb show --name %s --resource-group <group>"+
			" --query documentEndpoint): %w", op.doing, eventlog.ErrUnavailable, s.config.Endpoint, s.account(), err)
	}
	status := answer.StatusCode
	switch {
	case status == http.StatusTooManyRequests:
		return fmt.Errorf("%s: %w: throttled (429), the throughput of %s is used up: az cosmosdb sql container throughput update --account-name %s"+
			" --resource-group <group> --database-name %s --name %s --max-throughput <RU/s>",
			op.doing, eventlog.ErrUnavailable, op.container, s.account(), s.config.Database, op.container)
	case passes(err):
		return fmt.Errorf("%s: %w: the account answered %d", op.doing, eventlog.ErrUnavailable, status)
	case status == http.StatusNotFound:
		return fmt.Errorf("%s: %w", op.doing, s.missing(ctx, op.container))
	case status == http.StatusUnauthorized && s.config.Key != "":
		return fmt.Errorf("%s: %w", op.doing, &setupError{"the account refused COSMOS_KEY (401), or has keys turned off: " + s.keysCommand()})
	case status == http.StatusForbidden && strings.Contains(strings.ToLower(answer.Error()), "firewall"):
		return fmt.Errorf("%s: %w", op.doing, &setupError{"the firewall of the account refused this address (403): az cosmosdb update --name " +
			s.account() + " --resource-group <group> --ip-range-filter <addresses>, or use its private endpoint"})
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return fmt.Errorf("%s: %w", op.doing, &setupError{fmt.Sprintf("the identity of this program has no role in the account (%d): "+
			"az cosmosdb sql role assignment create --account-name %s --resource-group <group> --scope / --principal-id <object id of the identity>"+
			" --role-definition-id 00000000-0000-0000-0000-000000000002", status, s.account())})
	}
	return fmt.Errorf("%s: the account answered %d", op.doing, status)
}

// missing finds out whether the database or the container does not exist.
func (s *Store) missing(ctx context.Context, container string) error {
	ctx = context.WithValue(ctx, kindKey{}, "database read")
	_, err := attempt(ctx, s, func(ctx context.Context, c *client) (azcosmos.DatabaseResponse, error) {
		database, err := c.azure.NewDatabase(s.config.Database)
		if err != nil {
			return azcosmos.DatabaseResponse{}, err
		}
		return database.Read(ctx, nil)
	})
	if isStatus(err, http.StatusNotFound) {
		return &setupError{fmt.Sprintf("database %s does not exist: az cosmosdb sql database create --account-name %s --resource-group <group> --name %s",
			s.config.Database, s.account(), s.config.Database)}
	}
	return &setupError{fmt.Sprintf("container %s of database %s does not exist: %s", container, s.config.Database, s.createContainerCommand(container))}
}

func (s *Store) createContainerCommand(name string) string {
	path, ttl := usersKeyPath, ""
	if name == s.config.Containers.Events {
		path, ttl = eventsKeyPath, " --ttl 2592000"
	}
	return fmt.Sprintf("az cosmosdb sql container create --account-name %s --resource-group <group> --database-name %s --name %s --partition-key-path %s%s",
		s.account(), s.config.Database, name, path, ttl)
}

func (s *Store) keysCommand() string {
	return fmt.Sprintf("az cosmosdb keys list --name %s --resource-group <group>", s.account())
}

// account is the name of the account, the first part of its host name.
func (s *Store) account() string {
	endpoint, err := url.Parse(s.config.Endpoint)
	if err != nil || endpoint.Hostname() == "" {
		return "<account>"
	}
	name, _, _ := strings.Cut(endpoint.Hostname(), ".")
	return name
}
