package queue

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"unicode/utf8"

	"userconnectivity/handler/presence"
)

// NamePattern is what Service Bus takes as the name of a queue or topic.
const NamePattern = `^[A-Za-z0-9][A-Za-z0-9._/-]{0,258}$`

// nameForm is compiled when it is first needed, since the start of the process waits for what is compiled before.
var nameForm = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(NamePattern) })

// ValidName reports whether Service Bus takes a text as the name of a queue or topic.
func ValidName(name string) bool { return nameForm().MatchString(name) }

// Bounds of Routes: how many there are, and the bytes of a pattern.
const (
	maxRoutes  = 32
	maxPattern = 256
)

// Routes maps foreign keys to queues (design D7): "pattern=queue", separated by ";". The first pattern that matches
// the whole key wins; * is any number of characters, ? is one. The zero value has no routes. Make it with ParseRoutes.
type Routes string

// ParseRoutes reads routes: at most 32, the last "=" of each separates. Blanks around patterns and names, and empty
// routes, are left out. The error says on one line which route is wrong.
func ParseRoutes(text string) (Routes, error) {
	var routes []string
	for route := range strings.SplitSeq(text, ";") {
		if route = strings.TrimSpace(route); route == "" {
			continue
		}
		pattern, name := cutRoute(route)
		pattern, name = strings.TrimSpace(pattern), strings.TrimSpace(name)
		switch {
		case pattern == "":
			return "", fmt.Errorf("%.60q is not pattern=queue", route)
		case len(pattern) > maxPattern || !utf8.ValidString(pattern):
			return "", fmt.Errorf("pattern %.60q is not UTF-8 of at most %d bytes", pattern, maxPattern)
		case !ValidName(name):
			return "", fmt.Errorf("%.60q is no name of a queue", name)
		}
		routes = append(routes, pattern+"="+name)
	}
	if len(routes) > maxRoutes {
		return "", fmt.Errorf("%d routes are more than %d", len(routes), maxRoutes)
	}
	return Routes(strings.Join(routes, ";")), nil
}

// cutRoute cuts a route at its last "="; without one there is no pattern.
func cutRoute(route string) (pattern, name string) {
	i := max(strings.LastIndexByte(route, '='), 0)
	return route[:i], strings.TrimPrefix(route[i:], "=")
}

// Queue returns the queue of a key, and false for one that no pattern matches.
func (r Routes) Queue(key string) (name string, ok bool) {
	for route := range strings.SplitSeq(string(r), ";") {
		if pattern, name := cutRoute(route); pattern != "" && matches(pattern, key) {
			return name, true
		}
	}
	return "", false
}

// matches reports whether a pattern matches the whole key. It goes back to the last star alone, so it takes at most
// the product of both lengths.
func matches(pattern, key string) bool {
	var afterStar, retry string
	starred := false
	for key != "" {
		switch {
		case strings.HasPrefix(pattern, "*"):
			pattern = pattern[1:]
			afterStar, retry, starred = pattern, key, true
		case strings.HasPrefix(pattern, "?"):
			pattern, key = pattern[1:], afterFirst(key)
		case pattern != "" && pattern[0] == key[0]:
			pattern, key = pattern[1:], key[1:]
		case starred: // the star takes one character more
			retry = afterFirst(retry)
			pattern, key = afterStar, retry
		default:
			return false
		}
	}
	return strings.Trim(pattern, "*") == ""
}

// afterFirst returns s without its first character.
func afterFirst(s string) string {
	_, width := utf8.DecodeRuneInString(s)
	return s[width:]
}

// Destinations says where events are sent to.
type Destinations struct {
	// Events is the queue or topic of the transitions of users.
	Events string
	// Routes are the queues of foreign keys.
	Routes Routes
}

// Of returns the queue of an event, and false for the expiry of a key that no route matches (any more).
func (d Destinations) Of(e presence.Event) (name string, ok bool) {
	if e.Type == presence.KeyExpired {
		return d.Routes.Queue(e.Key)
	}
	return d.Events, true
}
