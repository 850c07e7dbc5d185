package triggers

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/presence"
)

// unmarshal decodes one strict JSON value; the error names the place in it.
func unmarshal(text []byte, v any) error {
	err := json.Unmarshal(withoutMark(text), v, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	field := fault.FieldError{Detail: "must be one JSON value of the documented shape"}
	var semantic *json.SemanticError
	var syntax *jsontext.SyntacticError
	switch {
	case errors.As(err, &semantic):
		field.Pointer = shortened(semantic.JSONPointer)
		switch {
		case errors.Is(err, json.ErrUnknownName):
			field.Detail = "is not a known field"
		default:
			field.Detail = "must be " + kindOf(semantic)
		}
	case errors.As(err, &syntax):
		field.Pointer = shortened(syntax.JSONPointer)
		if errors.Is(err, jsontext.ErrDuplicateName) {
			field.Detail = "appears twice"
		} else {
			field.Detail = fmt.Sprintf("is not JSON at byte %d: %v", syntax.ByteOffset, syntax.Err)
		}
	}
	return fault.Refuse([]fault.FieldError{field})
}

// maxPointer bounds what an answer repeats of its request, in bytes.
const maxPointer = 300

// shortened is a pointer as it is answered. One into a deep nesting, or to a very long name, is cut.
func shortened(p jsontext.Pointer) string {
	if len(p) > maxPointer {
		return strings.ToValidUTF8(string(p[:maxPointer]), "") + "..."
	}
	return string(p)
}

// kindOf names the type of value that was expected.
func kindOf(err *json.SemanticError) string {
	if err.GoType == nil {
		return "of another type"
	}
	switch err.GoType.Kind() {
	case reflect.Slice:
		return "a JSON array"
	case reflect.Int64:
		least, most := bounds(err.JSONPointer.LastToken())
		return fmt.Sprintf("an integer between %d and %d", least, most)
	case reflect.String:
		return "a string"
	default:
		return "a JSON object"
	}
}

// bounds are those of the integer fields of the bodies.
func bounds(field string) (least, most int64) {
	switch field {
	case "ttlSeconds":
		return int64(presence.MinTTL / time.Second), int64(presence.MaxTTL / time.Second)
	case "graceSeconds":
		return 0, int64(presence.MaxGrace / time.Second)
	default: // seq
		return 0, presence.MaxSeq
	}
}

// integer is a whole number of a body, however it is written: 45, 45.0 and 4.5e1 are the same.
type integer int64

var errNotWhole = errors.New("not a whole number of 64 bits")

// UnmarshalJSONFrom reads a number; null leaves it as it is.
func (n *integer) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	value, err := d.ReadValue()
	if err != nil {
		return err
	}
	switch value.Kind() {
	case 'n':
		return nil
	case '0':
		if whole, ok := wholeNumber(string(value)); ok {
			*n = integer(whole)
			return nil
		}
	}
	return errNotWhole
}

// optional is the number of a field that may be absent.
func (n *integer) optional() *int64 { return (*int64)(n) }

// wholeNumber returns the value of a JSON number, and whether it is a whole number of 64 bits.
func wholeNumber(literal string) (int64, bool) {
	if n, err := strconv.ParseInt(literal, 10, 64); err == nil {
		return n, true
	}
	digits, exponent, _ := strings.Cut(strings.ToLower(literal), "e")
	digits, negative := strings.CutPrefix(digits, "-")
	units, fraction, _ := strings.Cut(digits, ".")
	digits = strings.TrimLeft(units+fraction, "0")
	significant := strings.TrimRight(digits, "0")
	if significant == "" {
		return 0, true
	}
	power, err := strconv.Atoi(cmp.Or(exponent, "0"))
	if err != nil || power < -maxSingleBody || power > maxSingleBody {
		return 0, false // a number that an exponent like this makes whole would not fit
	}
	zeros := power - len(fraction) + len(digits) - len(significant)
	if zeros < 0 || len(significant)+zeros > 19 {
		return 0, false
	}
	if negative {
		significant = "-" + significant
	}
	n, err := strconv.ParseInt(significant+strings.Repeat("0", zeros), 10, 64)
	return n, err == nil
}

// optionalSession is the session that a body names, the default one when it names none.
func optionalSession(s *string) string {
	if s == nil {
		return presence.DefaultSession
	}
	return *s
}

// seconds turns a count of seconds into a duration; one out of any range stays out of range.
func seconds(n integer) time.Duration {
	if n < 0 || n > integer(24*time.Hour/time.Second) {
		return -time.Second
	}
	return time.Duration(n) * time.Second
}

// pathID reads an id from the path. chi leaves it escaped when the path had escapes that matter.
func pathID(r *http.Request, name string) (string, error) {
	id := chi.URLParam(r, name)
	if r.URL.RawPath != "" {
		unescaped, err := url.PathUnescape(id)
		if err != nil {
			return "", fault.Refuse([]fault.FieldError{{Pointer: "path:" + name, Detail: "is not percent-encoded correctly"}})
		}
		id = unescaped
	}
	if wrong := presence.CheckID(id); wrong != "" {
		return "", fault.Refuse([]fault.FieldError{{Pointer: "path:" + name, Detail: wrong}})
	}
	return id, nil
}

// Bounds of limit in paged answers.
const (
	defaultLimit = 20
	maxLimit     = 100
)

// paging reads limit and continuation from the query.
func paging(r *http.Request) (limit int, continuation string, err error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return 0, "", fault.Refuse([]fault.FieldError{{Pointer: "query", Detail: "is not percent-encoded correctly"}})
	}
	limit = defaultLimit
	text, present, err := queryValue(q, "limit")
	if err != nil {
		return 0, "", err
	}
	if present {
		limit, err = strconv.Atoi(text)
		if err != nil || limit < 1 || limit > maxLimit || strconv.Itoa(limit) != text {
			return 0, "", refuseQuery("limit", fmt.Sprintf("must be an integer between 1 and %d", maxLimit))
		}
	}
	continuation, present, err = queryValue(q, "continuation")
	if err == nil && present && continuation == "" {
		err = refuseQuery("continuation", "must not be empty: the first page has none")
	}
	return limit, continuation, err
}

// queryValue returns the value of a parameter that may be in the query once.
func queryValue(q url.Values, name string) (value string, present bool, err error) {
	switch values := q[name]; len(values) {
	case 0:
		return "", false, nil
	case 1:
		return values[0], true, nil
	}
	return "", true, refuseQuery(name, "appears twice")
}

func refuseQuery(name, detail string) error {
	return fault.Refuse([]fault.FieldError{{Pointer: "query:" + name, Detail: detail}})
}

// traceparent returns the W3C trace context of a request, "" when it has none of version 00.
// See https://www.w3.org/TR/trace-context/#traceparent-header.
func traceparent(r *http.Request) string {
	if h := r.Header.Get("Traceparent"); isTraceparent(h) {
		return h
	}
	return ""
}

// isTraceparent reports whether a text is a traceparent of version 00.
func isTraceparent(h string) bool {
	if len(h) != 55 || h[:3] != "00-" || isZero(h[3:35]) || isZero(h[36:52]) {
		return false
	}
	for i, c := range []byte(h) {
		dash := i == 2 || i == 35 || i == 52
		hex := '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
		if dash && c != '-' || !dash && !hex {
			return false
		}
	}
	return true
}

// isZero reports whether an id of a trace context is all zeros, which stands for none.
func isZero(id string) bool { return strings.Trim(id, "0") == "" }
