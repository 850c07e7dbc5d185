package eventlog

import "errors"

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

	// ErrUnavailable is wrapped by an error that says that the store cannot be reached, is throttled or is
	// locked at this moment: the same call may succeed later.
	ErrUnavailable = errors.New("event log is unavailable at this moment")
	// ErrClosed is returned by a store after Close.
	ErrClosed = errors.New("event log is closed")
)
