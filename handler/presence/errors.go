package presence

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

// KindOf returns the kind of err; Internal for an error that is not an *Error.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

// Refuse returns an Invalid error about the fields, nil when there are none.
func Refuse(fields []FieldError) error {
	if len(fields) == 0 {
		return nil
	}
	return &Error{Kind: Invalid, Message: "the input is not valid", Fields: fields}
}
