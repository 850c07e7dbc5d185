package localhost

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// routeError is what is wrong with a route in a way that stops the whole Functions host.
type routeError struct{ route, detail string }

func (e *routeError) Error() string { return fmt.Sprintf("route %q: %s", e.route, e.detail) }

type segmentKind int

// The kinds in order of precedence: a literal beats a parameter, which beats a catch-all.
const (
	literal segmentKind = iota
	parameter
	optional
	catchAll
)

type segment struct {
	kind segmentKind
	text string // of a literal, or the name
}

// route is a parsed route template, route prefix included.
type route struct {
	template string
	segments []segment
}

func parseRoute(prefix, template string) (route, error) {
	if strings.HasPrefix(template, "/") {
		return route{}, &routeError{template, "must not start with a slash"}
	}
	full := strings.Trim(prefix+"/"+template, "/")
	r := route{template: full}
	if full == "" {
		return r, nil
	}
	names := map[string]bool{}
	for text := range strings.SplitSeq(full, "/") {
		s := segment{kind: literal, text: text}
		if inner, ok := strings.CutPrefix(text, "{"); ok {
			inner, ok = strings.CutSuffix(inner, "}")
			s = segment{kind: parameter, text: inner}
			if name, found := strings.CutPrefix(inner, "*"); found {
				s = segment{kind: catchAll, text: name}
			} else if name, found := strings.CutSuffix(inner, "?"); found {
				s = segment{kind: optional, text: name}
			}
			if !ok || strings.ContainsAny(s.text, "{}:?*=") {
				return route{}, fmt.Errorf("route %q: segment %q is more than the local host knows", template, text)
			}
			if names[strings.ToLower(s.text)] {
				return route{}, &routeError{template, "parameter " + s.text + " is there twice"}
			}
			names[strings.ToLower(s.text)] = true
		} else if strings.ContainsAny(text, "{}") {
			return route{}, fmt.Errorf("route %q: segment %q is more than the local host knows", template, text)
		}
		r.segments = append(r.segments, s)
	}
	return r, nil
}

// matches reports whether the decoded segments of a path fit the route. Letter case does not count.
func (r route) matches(path []string) bool {
	for i, s := range r.segments {
		switch {
		case s.kind == catchAll:
			return true
		case i >= len(path):
			return s.kind == optional
		case s.kind == literal && !strings.EqualFold(s.text, path[i]), path[i] == "":
			return false
		}
	}
	return len(path) == len(r.segments)
}

// compare orders routes by precedence, segment by segment.
func (r route) compare(o route) int {
	for i := range min(len(r.segments), len(o.segments)) {
		if c := cmp.Compare(r.segments[i].kind, o.segments[i].kind); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(r.segments), len(o.segments))
}

// router finds the HTTP function of a request.
type router struct{ functions []*function }

func newRouter(functions []*function) *router {
	r := &router{}
	for _, f := range functions {
		if f.trigger.Type == "httpTrigger" && f.active() {
			r.functions = append(r.functions, f)
		}
	}
	slices.SortStableFunc(r.functions, func(a, b *function) int { return a.route.compare(b.route) })
	return r
}

// find returns the function for a method and a decoded path, nil when there is none. A slash at the end does not count.
func (r *router) find(method string, path []string) *function {
	if n := len(path); n > 0 && path[n-1] == "" {
		path = path[:n-1]
	}
	for _, f := range r.functions {
		if f.route.matches(path) && f.trigger.allows(method) {
			return f
		}
	}
	return nil
}

// allows reports whether the methods of an httpTrigger have method: an absent list means all, an empty one none.
func (b binding) allows(method string) bool {
	return b.Methods == nil ||
		slices.ContainsFunc(*b.Methods, func(m string) bool { return strings.EqualFold(m, method) })
}

// decodePath splits the path of a request and decodes it as the Functions host does: dot segments are resolved, and
// what stays as it is are an encoded slash, as the text %2F, and escapes that are no UTF-8. One slash at the end is an
// empty last segment; empty ones elsewhere count as segments.
func decodePath(u *url.URL) ([]string, error) {
	var path []string
	slash := false // the path ends with one
	for raw := range strings.SplitSeq(strings.TrimPrefix(u.EscapedPath(), "/"), "/") {
		text := decodeSegment(raw)
		if strings.Contains(text, "\x00") {
			return nil, fmt.Errorf("path segment %q holds a NUL", raw)
		}
		switch slash = true; text {
		case ".":
		case "..":
			path = path[:max(0, len(path)-1)]
		default:
			path, slash = append(path, text), false
		}
	}
	if slash {
		path = append(path, "")
	}
	return path, nil
}

// decodeSegment decodes the escapes of a path segment that are UTF-8 and no slash.
func decodeSegment(raw string) string {
	var text strings.Builder
	for i := 0; i < len(raw); {
		var escaped []byte // the bytes of the escapes from here on, up to one character
		for at := i; len(escaped) < utf8.UTFMax && isEscape(raw[at:]); at += 3 {
			b, _ := strconv.ParseUint(raw[at+1:at+3], 16, 8) // isEscape has looked
			escaped = append(escaped, byte(b))
		}
		r, size := utf8.DecodeRune(escaped)
		switch {
		case len(escaped) == 0:
			text.WriteByte(raw[i])
			i++
		case r == utf8.RuneError && size == 1, r == '/':
			text.WriteString(raw[i : i+3])
			i += 3
		default:
			text.Write(escaped[:size])
			i += 3 * size
		}
	}
	return text.String()
}

// isEscape reports whether s begins with a percent sign and two hexadecimal digits.
func isEscape(s string) bool { return len(s) >= 3 && s[0] == '%' && isHex(s[1]) && isHex(s[2]) }

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// encodePath is what the Functions host sends for a decoded path. As it encodes the percent sign again, an
// encoded slash of the client arrives at the handler as %252F.
func encodePath(path []string) (decoded, encoded string) {
	const unreserved = "-._~!$&'()*+,;=:@"
	var b strings.Builder
	for _, s := range path {
		b.WriteByte('/')
		for _, c := range []byte(s) {
			if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte(unreserved, c) >= 0 {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		}
	}
	return "/" + strings.Join(path, "/"), b.String()
}

// methods returns the methods of an HTTP function for people to read.
func (b binding) methods() string {
	if b.Methods == nil {
		return "[ALL]"
	}
	return "[" + strings.ToUpper(strings.Join(*b.Methods, ",")) + "]"
}

// authorized reports whether r has the key that f asks for, in the header or else in the query. Without a key of the
// host none is asked for.
func authorized(r *http.Request, f *function, key string) bool {
	if key == "" || strings.EqualFold(f.trigger.AuthLevel, "anonymous") {
		return true
	}
	if given, ok := r.Header["X-Functions-Key"]; ok {
		return equalSecrets(given[0], key)
	}
	return equalSecrets(code(r.URL.RawQuery), key)
}

// code returns the first key in a query; the letter case of its name does not count.
func code(query string) string {
	for part := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(part, "=")
		if name, err := url.QueryUnescape(name); err != nil || !strings.EqualFold(name, "code") {
			continue
		}
		if text, err := url.QueryUnescape(value); err == nil {
			return text
		}
		return value
	}
	return ""
}
