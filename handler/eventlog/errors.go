package eventlog

import (
	"errors"
	"fmt"
	"strings"

	"userconnectivity/handler/fault"
)

// Errors of the stores. Those of the first group are answers; ErrUnavailable is a fault that passes.
var (
	// ErrNotFound is returned for an event that the log does not hold.
	ErrNotFound = errors.New("event not found")
	// ErrContinuation is returned for a continuation token that this log did not issue for this user.
	ErrContinuation = errors.New("continuation is not one that this API returned")
	// ErrID is returned for an update whose event has an id of another form than presence.EventID makes.
	// Repeating the write cannot help.
	ErrID = errors.New("event id has not the form of one")
	// ErrProfileNotFound is returned for a profile that does not exist.
	ErrProfileNotFound = errors.New("profile not found")
	// ErrProfileChanged is returned for a conditional write of a profile that has another ETag, or is gone.
	ErrProfileChanged = errors.New("profile was changed since it was read")
	// ErrProfileInvalid is returned for a profile that is not a JSON object.
	ErrProfileInvalid = errors.New("profile is not a JSON object")

	// ErrUnavailable is wrapped by an error that says that the store cannot be reached, is throttled or locked, or
	// refuses this process (no right, no container) at this moment: the same call succeeds once that is mended.
	ErrUnavailable = errors.New("event log is unavailable at this moment")
	// ErrLater is wrapped by the error of Apply for a users record that only a process of a later version may change. It
	// passes when this process is replaced by one of that version.
	ErrLater = errors.New("a later version of the app wrote it in a form that this one does not know: " +
		"the event waits for a process of that version; finish the roll-out, or go forward to that version again")
	// ErrUnwritable is wrapped by the error of a log that cannot be written before somebody changes the deployment: its
	// file is on a file system that is mounted read-only, or in a folder that this process may not write. Waiting does
	// not help.
	ErrUnwritable = errors.New("event log cannot be written by this process")
	// ErrClosed is returned by a store after Close.
	ErrClosed = errors.New("event log is closed")
)

// Refusal is an event that a log can never keep, and why.
type Refusal struct {
	ID  string
	Err error
}

// RefusedError is returned by Write for events that the log can never keep, in no form. All other events of the call
// were written, and repeating the call does not help. A write that failed for any other reason, which may pass, returns
// that alone: the refusals come again when it is repeated.
type RefusedError struct{ Events []Refusal }

// Refused returns the error for refusals, nil when there are none.
func Refused(refusals []Refusal) error {
	if len(refusals) == 0 {
		return nil
	}
	return &RefusedError{refusals}
}

// maxNamed bounds the events that the text of an error names.
const maxNamed = 3

// Error names the first events with their reasons.
func (e *RefusedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the log refused %d events for good: ", len(e.Events))
	for i, r := range e.Events {
		if i == maxNamed {
			fmt.Fprintf(&b, " and %d more", len(e.Events)-i)
			break
		}
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%.40q: %v", r.ID, r.Err)
	}
	return b.String()
}

// ErrorKind tells that the same write can never succeed.
func (e *RefusedError) ErrorKind() fault.Kind { return fault.Invalid }

// Unwrap returns the reasons.
func (e *RefusedError) Unwrap() []error {
	errs := make([]error, len(e.Events))
	for i, r := range e.Events {
		errs[i] = r.Err
	}
	return errs
}
