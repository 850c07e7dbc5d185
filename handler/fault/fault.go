// Package fault is the errors that cross packages: who has to act on one, whether it passes, and what may be shown.
package fault

import (
	"errors"
	"strings"
	"time"
)

// Kind says who has to act on an error. triggers/respond.go maps each kind to an HTTP status.
type Kind int

// The kinds of an Error.
const (
	// Internal is a fault of ours; it is what any foreign error counts as.
	Internal Kind = iota
	// Invalid is input that can never succeed as it is.
	Invalid
	// NotFound is an id that names nothing.
	NotFound
	// Conflict is input that the present state refuses.
	Conflict
	// Unavailable is a passing fault: the same call may succeed later.
	Unavailable
)

// Error is an error whose Message may be shown to the caller.
type Error struct {
	Kind    Kind
	Message string
	// Fields names the parts of the input that are wrong.
	Fields []FieldError
	// RetryAfter is when to try again, for Unavailable; 0 leaves it to the reply's default.
	RetryAfter time.Duration
	// Err is the cause; it is logged and never shown.
	Err error
}

// FieldError is one part of the input that is wrong: a JSON pointer (RFC 6901) and what is expected there.
type FieldError struct {
	Pointer string `json:"pointer"`
	Detail  string `json:"detail"`
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for _, f := range e.Fields {
		b.WriteString("; " + f.Pointer + " " + f.Detail)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// ErrorKind returns the kind.
func (e *Error) ErrorKind() Kind { return e.Kind }

// KindOf returns the kind of err: that of the first error in its chain that has a method ErrorKind, as an *Error has;
// Internal for any other.
func KindOf(err error) Kind {
	var e interface{ ErrorKind() Kind }
	if errors.As(err, &e) {
		return e.ErrorKind()
	}
	return Internal
}

// Passing reports whether a call that failed with err may succeed later although nothing of its input changes. Only an
// error that says of itself that the input cannot succeed is permanent. All others pass: a server that is away, full or
// throttled, a right that is not granted yet, a database that is not made yet, and every fault that nobody foresaw.
func Passing(err error) bool {
	switch KindOf(err) {
	case Invalid, NotFound, Conflict:
		return false
	}
	return err != nil
}

// Refuse returns an Invalid error about the fields, nil when there are none.
func Refuse(fields []FieldError) error {
	if len(fields) == 0 {
		return nil
	}
	return &Error{Kind: Invalid, Message: "the input is not valid", Fields: fields}
}
