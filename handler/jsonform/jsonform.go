// Package jsonform is the form of the JSON texts that the app stores, sends and answers, where JSON leaves it open: how
// times are written, and what is read. All of them keep the numbers and texts of clients as they came, and what one
// process could write another one can read.
package jsonform

import (
	"fmt"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/presence"
)

// storedTime is the layout of times in stored texts: at most milliseconds, without zeros at the end.
const storedTime = "2006-01-02T15:04:05.999Z"

var (
	// Sent is the form of messages and answers: times have three digits of milliseconds.
	Sent = form(presence.TimeFormat)
	// Stored is the form of the documents of the event log: times have at most three.
	Stored = form(storedTime)
)

// form returns the options of a form. Times are written in UTC in the layout, the zero time as null. They are read from
// any RFC 3339 text; null and "" are the zero time.
func form(layout string) json.Options {
	return json.JoinOptions(
		jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true),
		json.WithMarshalers(json.MarshalToFunc(func(to *jsontext.Encoder, t time.Time) error {
			if t.IsZero() {
				return to.WriteToken(jsontext.Null)
			}
			return to.WriteToken(jsontext.String(t.UTC().Format(layout)))
		})),
		json.WithUnmarshalers(json.UnmarshalFromFunc(func(from *jsontext.Decoder, t *time.Time) error {
			token, err := from.ReadToken()
			if err != nil {
				return err
			}
			switch token.Kind() {
			case 'n':
				*t = time.Time{}
				return nil
			case '"':
				*t, err = ParseTime(token.String())
				return err
			}
			return fmt.Errorf("a time is a text, not a JSON value that begins with %q", token.Kind())
		})),
	)
}

// ParseTime reads an RFC 3339 time, in UTC; "" is the zero time.
func ParseTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("time %.50q is not RFC 3339", text)
	}
	return t.UTC(), nil
}
