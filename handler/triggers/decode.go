package triggers

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"userconnectivity/handler/presence"
)

// Limits of request bodies, in bytes (design, section 4).
const (
	maxSingleBody = 16 << 10
	maxBulkBody   = 4 << 20
)

// readJSON decodes the body of a request into v: one JSON value of a known shape, at most limit bytes.
// Duplicate names, unknown names and anything after the value are refused.
func readJSON(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	if ct := r.Header.Get("Content-Type"); ct != "" && ct != jsonType {
		if media, _, err := mime.ParseMediaType(ct); err != nil || media != jsonType {
			return &httpError{status: http.StatusUnsupportedMediaType, detail: fmt.Sprintf("the body must be application/json, not %q", ct)}
		}
	}
	body, err := readBody(w, r, limit)
	if err != nil {
		return err
	}
	return unmarshal(body, v)
}

// jsonType is the media type of every body that is read.
const jsonType = "application/json"

// readBody reads the whole body, at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	var body []byte
	var err error
	if n := r.ContentLength; n >= 0 && n <= limit {
		body = make([]byte, n)
		_, err = io.ReadFull(r.Body, body)
	} else {
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	}
	if err != nil {
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, &httpError{status: http.StatusRequestEntityTooLarge, detail: fmt.Sprintf("the body must have at most %d bytes", limit)}
		}
		return nil, &httpError{status: http.StatusBadRequest, detail: "the body could not be read to its end", err: err}
	}
	return body, nil
}

// unmarshal decodes one strict JSON value; the error names the place in it.
func unmarshal(text []byte, v any) error {
	err := json.Unmarshal(text, v, json.RejectUnknownMembers(true))
	if err == nil {
		return nil
	}
	field := presence.FieldError{Detail: "must be one JSON value of the documented shape"}
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
	return presence.Refuse([]presence.FieldError{field})
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
		return fmt.Sprintf("an integer between %d and %d, written without fraction or exponent", least, most)
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

// optionalSession is the session that a body names, the default one when it names none.
func optionalSession(s *string) string {
	if s == nil {
		return presence.DefaultSession
	}
	return *s
}

// seconds turns a count of seconds into a duration; one out of any range stays out of range.
func seconds(n int64) time.Duration {
	if n < 0 || n > int64(24*time.Hour/time.Second) {
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
			return "", presence.Refuse([]presence.FieldError{{Pointer: "path:" + name, Detail: "is not percent-encoded correctly"}})
		}
		id = unescaped
	}
	if wrong := presence.CheckID(id); wrong != "" {
		return "", presence.Refuse([]presence.FieldError{{Pointer: "path:" + name, Detail: wrong}})
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
		return 0, "", presence.Refuse([]presence.FieldError{{Pointer: "query", Detail: "is not percent-encoded correctly"}})
	}
	limit = defaultLimit
	if text := q.Get("limit"); text != "" {
		limit, err = strconv.Atoi(text)
		if err != nil || limit < 1 || limit > maxLimit {
			return 0, "", presence.Refuse([]presence.FieldError{{Pointer: "query:limit", Detail: fmt.Sprintf("must be an integer between 1 and %d", maxLimit)}})
		}
	}
	return limit, q.Get("continuation"), nil
}

// traceparent returns the W3C trace context of a request, "" when it has none of version 00.
// See https://www.w3.org/TR/trace-context/#traceparent-header.
func traceparent(r *http.Request) string {
	h := r.Header.Get("Traceparent")
	if len(h) != 55 || h[:3] != "00-" || isZero(h[3:35]) || isZero(h[36:52]) {
		return ""
	}
	for i, c := range []byte(h) {
		dash := i == 2 || i == 35 || i == 52
		hex := '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
		if dash && c != '-' || !dash && !hex {
			return ""
		}
	}
	return h
}

// isZero reports whether an id of a trace context is all zeros, which stands for none.
func isZero(id string) bool { return strings.Trim(id, "0") == "" }
