package localhost

import (
	"cmp"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
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

// find returns the function for a method and a decoded path, nil when there is none.
func (r *router) find(method string, path []string) *function {
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

// decodePath splits the path of a request and decodes it as the Functions host does: dot segments are
// resolved, and an encoded slash stays encoded, as the text %2F. Slashes at the end do not count.
func decodePath(u *url.URL) ([]string, error) {
	var path []string
	trimmed := strings.Trim(u.EscapedPath(), "/")
	if trimmed == "" {
		return nil, nil
	}
	keepSlash := strings.NewReplacer("%2F", "%252F", "%2f", "%252f")
	for raw := range strings.SplitSeq(trimmed, "/") {
		text, err := url.PathUnescape(keepSlash.Replace(raw))
		if err != nil || strings.Contains(text, "\x00") {
			return nil, fmt.Errorf("path segment %q cannot be decoded", raw)
		}
		switch text {
		case ".":
		case "..":
			path = path[:max(0, len(path)-1)]
		default:
			path = append(path, text)
		}
	}
	return path, nil
}

// encodePath is what the Functions host sends for a decoded path. As it encodes the percent sign again, an
// encoded slash of the client arrives at the handler as %252F.
func encodePath(path []string, trailingSlash bool) (decoded, encoded string) {
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
	if decoded = "/" + strings.Join(path, "/"); trailingSlash && len(path) > 0 {
		return decoded + "/", b.String() + "/"
	}
	return decoded, cmp.Or(b.String(), "/")
}

// methods returns the methods of an HTTP function for people to read.
func (b binding) methods() string {
	if b.Methods == nil {
		return "[ALL]"
	}
	return "[" + strings.ToUpper(strings.Join(*b.Methods, ",")) + "]"
}

// authorized reports whether r has the key that f asks for. Without a key of the host none is asked for.
func authorized(r *http.Request, f *function, key string) bool {
	if key == "" || strings.EqualFold(f.trigger.AuthLevel, "anonymous") {
		return true
	}
	given := cmp.Or(r.Header.Get("X-Functions-Key"), r.URL.Query().Get("code"))
	return equalSecrets(given, key)
}
