package config

import (
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"userconnectivity/handler/queue"
)

// maxLength bounds the bytes of a setting: the longest of ours, routes and signatures, have a few thousand.
const maxLength = 16 << 10

// reader reads settings and collects what is wrong with them.
type reader struct {
	lookup   func(string) (string, bool)
	problems Problems
	// minor is true while settings are read whose default will do until they are right.
	minor bool
}

// fault says what is wrong with a value. No words of the value are in it. The zero value is no fault.
type fault string

// form is what the text of a setting must look like.
type form struct {
	// want completes "NAME must be".
	want, example string
	// check finds what is wrong; "" for nothing, and otherwise a reason that follows want, or mismatch for no more
	// than that.
	check func(value string) fault
}

// mismatch is a value that is just not what is wanted.
const mismatch fault = "mismatch"

// get returns a setting, "" for none. It finds what can be wrong with the value of any setting.
func (r *reader) get(name string) (string, fault) {
	v, _ := r.lookup(name)
	v = strings.TrimSpace(v)
	quoted := len(v) > 1 && v[0] == v[len(v)-1] && strings.IndexByte(`"'`+"`", v[0]) >= 0
	switch {
	case v == "":
		return "", ""
	case len(v) > len(reference) && strings.EqualFold(v[:len(reference)], reference):
		return "", unresolved(name, v)
	case quoted:
		return "", "it has quotes around its value; leave them out"
	case placeholder(v):
		return "", "it still has a placeholder that was to be replaced by a value"
	case len(v) > maxLength:
		return "", fault(fmt.Sprintf("it has %d bytes, and %d are allowed", len(v), maxLength))
	case !utf8.ValidString(v) || strings.ContainsFunc(v, unicode.IsControl):
		return "", "it has a line end or another control character in it"
	}
	return v, ""
}

// reference begins a value that the platform is to replace.
const reference = "@Microsoft."

// unresolved says what to do about a reference that the platform left as it is.
// See https://learn.microsoft.com/azure/app-service/app-service-key-vault-references.
func unresolved(name, value string) fault {
	if !strings.HasPrefix(strings.ToLower(value), strings.ToLower(reference+"KeyVault(")) {
		return "it still holds a reference that the platform did not resolve; give the app's identity the right to read its store, " +
			"and check the reference in the portal under Environment variables"
	}
	return fault("it still holds a Key Vault reference that the platform did not resolve; give the app's identity the right to read secrets " +
		`(az role assignment create --role "Key Vault Secrets User" --assignee <principal-id> --scope <vault-id>), let the app reach the vault, check the name of the secret, ` +
		"and have it read again (az functionapp restart --resource-group <resource-group> --name <app>); the portal shows the reason under Environment variables, " + name)
}

// placeholder reports whether a value is a variable of a shell, a template or a pipeline, or a word to fill in.
func placeholder(v string) bool {
	for _, mark := range []struct{ begin, end string }{{"<", ">"}, {"${", "}"}, {"$(", ")"}, {"{{", "}}"}, {"#{", "}#"}, {"#{", "}"}, {"%", "%"}} {
		if inner, ok := strings.CutPrefix(v, mark.begin); ok && len(inner) > len(mark.end) && strings.HasSuffix(inner, mark.end) {
			return true
		}
	}
	return false
}

// text reads a setting of a form.
func (r *reader) text(part Part, name, usual string, f form) string {
	v, why := r.get(name)
	if why == "" && v == "" {
		return usual
	}
	text := name + " cannot be used: " + string(why)
	if why == "" {
		if why = f.check(v); why == "" {
			return v
		}
		text = name + " must be " + f.want
		if why != mismatch {
			text += ", and " + string(why)
		}
		if f.example != "" {
			text += ", for example " + name + "=" + f.example
		}
	}
	r.problems = append(r.problems, Problem{Setting: name, Part: part, Minor: r.minor, Text: text, Example: f.example})
	return usual
}

// demote makes problems of settings minor ones, if they are not used.
func (r *reader) demote(unused bool, names ...string) {
	for i := range r.problems {
		if unused && slices.Contains(names, r.problems[i].Setting) {
			r.problems[i].Minor = true
		}
	}
}

func (r *reader) integer(part Part, name string, usual, least, most int) int {
	n := usual
	r.text(part, name, "", form{
		want: fmt.Sprintf("a whole number between %d and %d", least, most), example: strconv.Itoa(usual),
		check: func(v string) fault {
			given, err := strconv.Atoi(v)
			switch {
			case err != nil && strings.TrimLeft(v, "0123456789") != v:
				return "it has something beside digits in it; leave units out"
			case err != nil:
				return mismatch
			case given < least || given > most:
				return fault(fmt.Sprintf("it is %d", given))
			}
			n = given
			return ""
		},
	})
	return n
}

func (r *reader) seconds(part Part, name string, usual, least, most time.Duration) time.Duration {
	return time.Duration(r.integer(part, name, int(usual/time.Second), int(least/time.Second), int(most/time.Second))) * time.Second
}

func (r *reader) boolean(part Part, name string, usual bool) bool {
	text := r.text(part, name, strconv.FormatBool(usual), form{want: "true or false", example: "true", check: func(v string) fault {
		if _, err := strconv.ParseBool(strings.ToLower(v)); err != nil {
			return mismatch
		}
		return ""
	}})
	v, _ := strconv.ParseBool(strings.ToLower(text)) // it was checked
	return v
}

// choice reads one of some words, the first of which is the default.
func (r *reader) choice(part Part, name string, choices ...string) string {
	last := len(choices) - 1
	want := "one of " + strings.Join(choices, ", ")
	if last == 1 {
		want = choices[0] + " or " + choices[1]
	}
	return strings.ToLower(r.text(part, name, choices[0], form{want: want, example: choices[0], check: func(v string) fault {
		if !slices.Contains(choices, strings.ToLower(v)) {
			return mismatch
		}
		return ""
	}}))
}

func (r *reader) level(name string) slog.Level {
	var l slog.Level
	r.text(Process, name, "", form{want: "debug, info, warn or error", example: "info", check: func(v string) fault {
		if err := l.UnmarshalText([]byte(v)); err != nil {
			return mismatch
		}
		return ""
	}})
	return l
}

// routes reads EXPIRATION_ROUTES. Which route is wrong is told by its number.
func (r *reader) routes(name string) queue.Routes {
	var routes queue.Routes
	r.text(Queue, name, "", form{
		want: "pattern=queue, several separated by semicolons", example: "cart:*=carts;lock:??=locks",
		check: func(v string) fault {
			n := 0
			for route := range strings.SplitSeq(v, ";") {
				if strings.TrimSpace(route) == "" {
					continue
				}
				n++
				if _, err := queue.ParseRoutes(route); err != nil {
					pattern, to, _ := strings.Cut(route, "=")
					if strings.TrimSpace(pattern) == "" || strings.TrimSpace(to) == "" {
						return fault(fmt.Sprintf("route %d has no pattern or no queue", n))
					}
					return fault(fmt.Sprintf("route %d has a pattern over 256 bytes or no name of a queue after its last =", n))
				}
			}
			var err error
			if routes, err = queue.ParseRoutes(v); err != nil {
				return fault(fmt.Sprintf("it has %d routes, more than are allowed (32)", n))
			}
			return ""
		},
	})
	return routes
}
