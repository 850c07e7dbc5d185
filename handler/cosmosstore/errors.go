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
	"userconnectivity/handler/fault"
	"userconnectivity/handler/identity"
)

// Substatuses, the header x-ms-substatus, that tell apart what has one status.
const (
	// noOwner: 404 for a document whose container or database does not exist.
	noOwner = "1003"
	// noSession: 404 of a replica that has not seen the session's last write yet. It tells nothing of the document.
	noSession = "1002"
	// noWriteRegion: 403 of a region that takes no writes, as while the write region changes.
	noWriteRegion = "3"
	// noRegion: 403 of a region that does not know the account, as while a region is added or removed.
	noRegion = "1008"
	// keyFull: 403 for a document whose logical partition has reached its size limit.
	keyFull = "1014"
	// keyMismatch: 400 for a document whose container has another partition key than the request names.
	keyMismatch = "1001"
)

// setupError is a fault of the settings or of the deployment; its text says how to mend it.
type setupError struct{ text string }

// Error returns the text.
func (e *setupError) Error() string { return e.text }

// tokenError is why the credential gave no token.
type tokenError struct{ err error }

// Error returns the text of the credential in one line.
func (e *tokenError) Error() string { return identity.Words(e.err) }

// Unwrap returns the error of the credential.
func (e *tokenError) Unwrap() error { return e.err }

// role is what the identity of the app needs, roleID its id.
const (
	role   = "Cosmos DB Built-in Data Contributor"
	roleID = "00000000-0000-0000-0000-000000000002"
)

// clockTolerance is how far the clock may be from that of the account, which refuses signatures that are 15 minutes
// old.
const clockTolerance = 5 * time.Minute

// clockOff returns how far the clock of this process is ahead of the account's, by an answer that just came.
func clockOff(answer *azcore.ResponseError) time.Duration {
	at, err := http.ParseTime(header(answer, "Date"))
	if err != nil {
		return 0
	}
	return time.Since(at)
}

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
		isStatus(err, http.StatusNotFound) && substatus(err) != noOwner && substatus(err) != noSession
}

// isRefusal tells that this event or request is not taken, however often it is sent, while others may be.
func isRefusal(err error) bool {
	var known *refusal
	if errors.As(err, &known) || errors.Is(err, eventlog.ErrID) {
		return true
	}
	switch status(err) {
	case http.StatusBadRequest:
		return substatus(err) != keyMismatch
	case http.StatusForbidden:
		return substatus(err) == keyFull
	case http.StatusRequestEntityTooLarge:
		return true
	}
	return false
}

// isOfRegion tells that another region takes the request, or this one in a moment: the official client then looks for
// the regions anew.
func isOfRegion(status int, substatus string) bool {
	return status == http.StatusForbidden && (substatus == noWriteRegion || substatus == noRegion)
}

// status is that of the answer in err, 0 where there is none.
func status(err error) int {
	if answer := responseOf(err); answer != nil {
		return answer.StatusCode
	}
	return 0
}

// substatus is that of the answer in err, "" where there is none.
func substatus(err error) string {
	if answer := responseOf(err); answer != nil {
		return header(answer, "x-ms-substatus")
	}
	return ""
}

// refusal is such an answer without the text of the service, which is long and repeats the request, or a document that
// cannot be read or written.
type refusal struct {
	text  string
	cause error
}

// Error returns the text.
func (e *refusal) Error() string { return e.text }

// Unwrap returns the answer.
func (e *refusal) Unwrap() error { return e.cause }

// ErrorKind tells that the same request can never succeed.
func (e *refusal) ErrorKind() fault.Kind { return fault.Invalid }

// repeatable reports whether it is worth while to send the same request again at once.
func repeatable(err error) bool {
	var setup *setupError
	if errors.As(err, &setup) || errors.Is(err, eventlog.ErrClosed) || errors.Is(err, context.Canceled) {
		return false
	}
	answer := responseOf(err)
	if answer == nil {
		return true // no connection, no answer in time, no token
	}
	switch answer.StatusCode {
	case http.StatusNotFound:
		return substatus(err) == noSession
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
// which command. The text of the service is left out, as in a refusal. Whatever is wrong with the account, with the way
// to it or with the rights there, is no fault of the request: the same one succeeds once it is mended, which a role that
// was just assigned is by itself after minutes. So all of these are eventlog.ErrUnavailable.
func (s *Store) explain(ctx context.Context, op operation, err error) error {
	var setup *setupError
	switch {
	case errors.Is(err, eventlog.ErrClosed) || s.life.Err() != nil:
		return eventlog.ErrClosed
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("%s: %w", op.doing, err)
	case !errors.As(err, &setup):
		err = s.diagnose(ctx, op, err)
	}
	return fmt.Errorf("%s: %w: %w", op.doing, eventlog.ErrUnavailable, err)
}

// diagnose returns what is wrong and what mends it.
func (s *Store) diagnose(ctx context.Context, op operation, err error) error {
	answer := responseOf(err)
	if answer == nil {
		return s.noAnswer(ctx, err)
	}
	code, sub := answer.StatusCode, header(answer, "x-ms-substatus")
	switch {
	case code == http.StatusTooManyRequests:
		return &setupError{fmt.Sprintf("throttled (429), the throughput of %s is used up: az cosmosdb sql container throughput update --account-name %s"+
			" --resource-group <group> --database-name %s --name %s --max-throughput <RU/s>", op.container, s.account(), s.config.Database, op.container)}
	case isOfRegion(code, sub) && sub == noWriteRegion:
		return &setupError{"the account takes no writes in the region that was asked (403, substatus 3): its write region is changing, or is offline. " +
			"If it stays so: " + s.showCommand("[writeLocations,enableAutomaticFailover]")}
	case isOfRegion(code, sub):
		return &setupError{"the region that was asked does not know the account (403, substatus 1008): a region is being added or removed, or the account was deleted. " +
			"If it stays so: " + s.showCommand("[documentEndpoint,locations]")}
	case code == http.StatusNotFound && sub == noSession:
		return &setupError{"the replica that was asked has not seen the last write yet (404, substatus 1002)"}
	case code == http.StatusNotFound:
		return s.missing(ctx, op.container)
	case code == http.StatusBadRequest && sub == keyMismatch:
		return &setupError{fmt.Sprintf("container %s has another partition key than this program needs (400, substatus 1001): %s",
			op.container, s.createContainerCommand(op.container))}
	case code == http.StatusForbidden && strings.Contains(strings.ToLower(answer.Error()), "firewall"):
		return &setupError{"the firewall of the account refused this address (403): az cosmosdb update --name " +
			s.account() + " --resource-group <group> --ip-range-filter <addresses>, or use its private endpoint"}
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return s.refused(answer)
	case sub != "":
		return &setupError{fmt.Sprintf("the account answered %d, substatus %s", code, sub)}
	}
	return &setupError{fmt.Sprintf("the account answered %d", code)}
}

// noAnswer explains a request that got no answer.
func (s *Store) noAnswer(ctx context.Context, err error) error {
	if cause := s.noToken.Load(); cause != nil {
		problem, mend := identity.Diagnose(cause.err)
		return fmt.Errorf("account %s: %s; %s; it needs the role %s: %w", s.account(), problem, mend, role, cause)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		before := requestOf(ctx).lastFault()
		if before == nil {
			return fmt.Errorf("no answer in time from %s (to see its state: %s): %w", s.config.Endpoint, s.showCommand("provisioningState"), err)
		}
		err = fmt.Errorf("%w; the attempt before: %w", err, before)
	}
	return fmt.Errorf("%s cannot be reached (if COSMOS_ENDPOINT is wrong: %s): %w", s.config.Endpoint, s.showCommand("documentEndpoint"), err)
}

func (s *Store) showCommand(query string) string {
	return fmt.Sprintf("az cosmosdb show --name %s --resource-group <group> --query %s", s.account(), query)
}

// refused explains a 401 or 403 for the kind of credential in use.
func (s *Store) refused(answer *azcore.ResponseError) error {
	status := answer.StatusCode
	if off := clockOff(answer); off.Abs() > clockTolerance {
		word := "ahead of"
		if off < 0 {
			word = "behind"
		}
		return &setupError{fmt.Sprintf("the clock of this machine is %s %s that of account %s, which refuses what is signed at another time (%d): "+
			"sudo timedatectl set-ntp true", off.Abs().Round(time.Minute), word, s.account(), status)}
	}
	if s.config.Key != "" {
		return &setupError{fmt.Sprintf("account %s refused COSMOS_KEY (%d), or has keys turned off: %s", s.account(), status, s.keysCommand())}
	}
	who, principal := "the identity of this app", "<object id of the identity>"
	if oid := s.principal.Load(); oid != nil && *oid != "" {
		who, principal = who+" (object id "+*oid+")", *oid
	}
	return &setupError{fmt.Sprintf("%s has no role in account %s (%d); it needs %s: az cosmosdb sql role assignment create --account-name %s"+
		" --resource-group <group> --scope / --principal-id %s --role-definition-id %s", who, s.account(), status, role, s.account(), principal, roleID)}
}

// missing finds out whether the database or the container does not exist.
func (s *Store) missing(ctx context.Context, container string) error {
	ctx = withRequest(ctx, "database read")
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
