package infra_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// A reader of Bicep that knows just enough to check the templates without a compiler: tokens, declarations, literal
// values, and which names an expression uses.

// token is one token. Interpolated strings become several: the pieces of text, and what is between ${ and }.
type token struct {
	kind string // name, text, number, newline, or the symbol itself
	text string
	line int
}

// symbols, the longer first.
var symbols = []string{
	"=>", "==", "!=", "<=", ">=", "&&", "||", "??", ".?", "::", "...", "=~", "!~",
	"{", "}", "[", "]", "(", ")", ":", ",", ".", "?", "=", "@", "!", "<", ">", "+", "-", "*", "/", "%",
}

// tokens splits a file. It fails the test at what it does not know.
func tokens(t *testing.T, path, source string) []token {
	t.Helper()
	var list []token
	line := 1
	add := func(kind, text string) { list = append(list, token{kind, text, line}) }
	rest := source
	// depths counts the braces that are open inside each ${ that is open.
	var depths []int
	for rest != "" {
		switch c := rest[0]; {
		case c == '\n':
			add("newline", "")
			line++
			rest = rest[1:]
		case c == ' ' || c == '\t' || c == '\r':
			rest = rest[1:]
		case strings.HasPrefix(rest, "//"):
			i := strings.IndexByte(rest, '\n')
			if i < 0 {
				i = len(rest)
			}
			rest = rest[i:]
		case strings.HasPrefix(rest, "'''"):
			text, after, ok := strings.Cut(rest[3:], "'''")
			if !ok {
				t.Fatalf("%s:%d: a text without an end", path, line)
			}
			add("text", text)
			line += strings.Count(text, "\n")
			rest = after
		case c == '\'':
			rest = textUntilBreak(t, path, rest[1:], add, &depths, line)
		case c == '}' && len(depths) > 0 && depths[len(depths)-1] == 0:
			depths = depths[:len(depths)-1]
			add(")", "")
			rest = textUntilBreak(t, path, rest[1:], add, &depths, line)
		case unicode.IsDigit(rune(c)):
			n := strings.IndexFunc(rest, func(r rune) bool { return !unicode.IsDigit(r) })
			add("number", rest[:n])
			rest = rest[n:]
		case unicode.IsLetter(rune(c)) || c == '_':
			n := strings.IndexFunc(rest, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_' })
			add("name", rest[:n])
			rest = rest[n:]
		default:
			i := slices.IndexFunc(symbols, func(s string) bool { return strings.HasPrefix(rest, s) })
			if i < 0 {
				t.Fatalf("%s:%d: what is %q?", path, line, rest[:1])
			}
			if len(depths) > 0 {
				switch symbols[i] {
				case "{":
					depths[len(depths)-1]++
				case "}":
					depths[len(depths)-1]--
				}
			}
			add(symbols[i], "")
			rest = rest[len(symbols[i]):]
		}
	}
	return append(list, token{"newline", "", line})
}

// textUntilBreak reads a text up to its end or the next ${, which it turns into a parenthesis.
func textUntilBreak(t *testing.T, path, rest string, add func(kind, text string), depths *[]int, line int) string {
	t.Helper()
	var text strings.Builder
	for i := 0; i < len(rest); i++ {
		switch {
		case rest[i] == '\\' && i+1 < len(rest):
			i++
			text.WriteByte(rest[i])
		case rest[i] == '\'':
			add("text", text.String())
			return rest[i+1:]
		case strings.HasPrefix(rest[i:], "${"):
			add("text", text.String())
			add("(", "$")
			*depths = append(*depths, 0)
			return rest[i+2:]
		case rest[i] == '\n':
			t.Fatalf("%s:%d: a text without an end", path, line)
		default:
			text.WriteByte(rest[i])
		}
	}
	t.Fatalf("%s:%d: a text without an end", path, line)
	return ""
}

// declaration is one param, var, resource, module or output.
type declaration struct {
	kind, name string
	// is is the type of a param or output, the resource type or the module's file.
	is         string
	existing   bool
	decorators map[string]any
	// value is what follows the equals sign; nil without one.
	value  any
	tokens []token // of the value, and of the condition
	line   int
}

// expression is a value that is not a literal.
type expression []token

// bicep is one file.
type bicep struct {
	path         string
	declarations []declaration
	using        string
}

// read reads a .bicep or .bicepparam file.
func read(t *testing.T, path string) bicep {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	p := parser{t: t, path: path, list: tokens(t, path, string(data))}
	return p.file()
}

// modules returns all templates by path below infra/, main.bicep among them.
func templates(t *testing.T) map[string]bicep {
	t.Helper()
	paths, err := filepath.Glob("modules/*.bicep")
	if err != nil || len(paths) == 0 {
		t.Fatalf("there are no modules (%v)", err)
	}
	all := map[string]bicep{}
	for _, path := range append(paths, "main.bicep") {
		all[filepath.ToSlash(path)] = read(t, path)
	}
	return all
}

// find returns a declaration by kind and name; it must be there.
func (b bicep) find(t *testing.T, kind, name string) declaration {
	t.Helper()
	for _, d := range b.declarations {
		if d.kind == kind && d.name == name {
			return d
		}
	}
	t.Fatalf("%s has no %s %s", b.path, kind, name)
	return declaration{}
}

func (b bicep) all(kind string) []declaration {
	var list []declaration
	for _, d := range b.declarations {
		if d.kind == kind {
			list = append(list, d)
		}
	}
	return list
}

// param returns the value of a parameter file, or the default of a template.
func (b bicep) value(t *testing.T, kind, name string) any {
	t.Helper()
	return b.find(t, kind, name).value
}

type parser struct {
	t    *testing.T
	path string
	list []token
	at   int
}

func (p *parser) peek() token { return p.list[p.at] }

func (p *parser) next() token {
	p.at++
	return p.list[p.at-1]
}

func (p *parser) skip(kinds ...string) bool {
	found := false
	for p.at < len(p.list) && slices.Contains(kinds, p.peek().kind) {
		p.at++
		found = true
	}
	return found
}

func (p *parser) want(kind string) token {
	p.t.Helper()
	if p.at >= len(p.list) || p.peek().kind != kind {
		p.t.Fatalf("%s:%d: %s is missing", p.path, p.list[min(p.at, len(p.list)-1)].line, kind)
	}
	return p.next()
}

func (p *parser) file() bicep {
	b := bicep{path: p.path}
	decorators := map[string]any{}
	for p.skip("newline"); p.at < len(p.list); p.skip("newline") {
		if p.skip("@") {
			name := p.want("name").text
			from := p.at
			p.balanced()
			inner := parser{t: p.t, path: p.path, list: append(slices.Clone(p.list[from+1:p.at-1]), token{kind: "newline"})}
			decorators[name] = nil
			if len(inner.list) > 1 {
				decorators[name] = inner.val()
			}
			continue
		}
		d := declaration{kind: p.want("name").text, decorators: decorators, line: p.peek().line}
		decorators = map[string]any{}
		switch d.kind {
		case "targetScope":
			p.want("=")
			p.val()
			continue
		case "using":
			b.using = p.want("text").text
			continue
		case "param", "var", "output", "resource", "module":
		default:
			p.t.Fatalf("%s:%d: what is %q?", p.path, d.line, d.kind)
		}
		d.name = p.want("name").text
		if p.peek().kind != "=" {
			d.is = p.next().text
		}
		if p.peek().text == "existing" {
			d.existing = true
			p.next()
		}
		if p.skip("=") {
			from := p.at
			if p.peek().text == "if" {
				p.next()
				p.balanced()
			}
			d.value = p.val()
			d.tokens = p.list[from:p.at]
		}
		b.declarations = append(b.declarations, d)
	}
	return b
}

var closing = map[string]string{"(": ")", "[": "]", "{": "}"}

// balanced skips from an opening token past its closing one.
func (p *parser) balanced() {
	p.t.Helper()
	open := p.next()
	end := closing[open.kind]
	if end == "" {
		p.t.Fatalf("%s:%d: an opening token is missing", p.path, open.line)
	}
	for p.peek().kind != end {
		if closing[p.peek().kind] != "" {
			p.balanced()
		} else {
			p.next()
		}
		if p.at >= len(p.list) {
			p.t.Fatalf("%s:%d: %s has no %s", p.path, open.line, open.kind, end)
		}
	}
	p.next()
}

// val reads a value: a string, int, bool, nil, []any, map[string]any, or an expression for anything else.
func (p *parser) val() any {
	p.t.Helper()
	from := p.at
	literal, ok := p.literal()
	if ok && p.ends() {
		return literal
	}
	p.at = from
	for !p.ends() {
		if closing[p.peek().kind] != "" {
			p.balanced()
		} else {
			p.next()
		}
	}
	return expression(p.list[from:p.at])
}

// ends reports whether the value ends here. A line that begins with ? or : goes on with the one before.
func (p *parser) ends() bool {
	switch p.peek().kind {
	case ",", "]", "}", ")":
		return true
	case "newline":
		i := p.at
		for i < len(p.list) && p.list[i].kind == "newline" {
			i++
		}
		if i < len(p.list) && (p.list[i].kind == "?" || p.list[i].kind == ":") {
			p.at = i
			return false
		}
		return true
	}
	return false
}

func (p *parser) literal() (any, bool) {
	switch one := p.next(); one.kind {
	case "text":
		return one.text, p.peek().kind != "("
	case "number":
		n, err := strconv.Atoi(one.text)
		return n, err == nil
	case "-":
		if p.peek().kind != "number" {
			return nil, false
		}
		n, err := strconv.Atoi(p.next().text)
		return -n, err == nil
	case "name":
		switch one.text {
		case "true", "false":
			return one.text == "true", true
		case "null":
			return nil, true
		}
	case "[":
		list := []any{}
		for p.skip("newline", ","); p.peek().kind != "]"; p.skip("newline", ",") {
			if p.peek().text == "for" {
				return nil, false
			}
			list = append(list, p.val())
		}
		p.next()
		return list, true
	case "{":
		object := map[string]any{}
		for p.skip("newline", ","); p.peek().kind != "}"; p.skip("newline", ",") {
			key := p.next()
			switch {
			case key.text == "resource" && p.peek().kind == "name": // nested
				name := p.next().text
				p.want("text")
				p.want("=")
				object["resource "+name] = p.val()
				continue
			case p.peek().kind == "(": // an interpolated key
				return nil, false
			}
			p.want(":")
			object[key.text] = p.val()
		}
		p.next()
		return object, true
	}
	return nil, false
}

// uses returns the names that tokens refer to: not keys of objects, members, functions or keywords. It adds the
// variables of lambdas and loops to local.
func uses(list []token, local map[string]bool) (names, functions []string) {
	for i, one := range list {
		if one.kind != "name" {
			continue
		}
		before, after := "newline", "newline"
		if i > 0 {
			before = list[i-1].kind
		}
		if i+1 < len(list) {
			after = list[i+1].kind
		}
		switch {
		case before == "." || before == ".?" || before == "::" || before == "@":
		case (before == "newline" || before == "{" || before == ",") && after == ":": // a key
		case slices.Contains([]string{"true", "false", "null", "if", "for", "in", "existing", "resource"}, one.text):
		case i > 0 && list[i-1].text == "resource": // the name of a nested resource
		case after == "=>":
			local[one.text] = true
		case i > 0 && list[i-1].text == "for":
			local[one.text] = true
		case i > 1 && list[i-2].text == "for" && before == "(": // for (item, index)
			local[one.text] = true
		case i > 3 && list[i-4].text == "for" && before == ",":
			local[one.text] = true
		case after == "(" && list[i+1].text != "$":
			functions = append(functions, one.text)
		default:
			names = append(names, one.text)
		}
	}
	return names, functions
}

// keys returns the keys of all objects in tokens.
func keys(list []token) []string {
	var found []string
	for i := 1; i+1 < len(list); i++ {
		if list[i].kind == "name" && list[i+1].kind == ":" && slices.Contains([]string{"newline", "{", ","}, list[i-1].kind) {
			found = append(found, list[i].text)
		}
	}
	return found
}

// say writes tokens on one line, for messages and for searching.
func say(list []token) string {
	var b strings.Builder
	for _, one := range list {
		switch one.kind {
		case "name", "number":
			fmt.Fprintf(&b, "%s ", one.text)
		case "text":
			fmt.Fprintf(&b, "'%s' ", one.text)
		case "newline":
		default:
			fmt.Fprintf(&b, "%s ", one.kind)
		}
	}
	return strings.TrimSpace(b.String())
}

// at follows a path of keys into a literal.
func at(t *testing.T, value any, path ...string) any {
	t.Helper()
	for i, key := range path {
		object, ok := value.(map[string]any)
		if !ok {
			t.Fatalf("%s is no object", strings.Join(path[:i], "."))
		}
		if value, ok = object[key]; !ok {
			t.Fatalf("there is no %s", strings.Join(path[:i+1], "."))
		}
	}
	return value
}

// texts returns a list of strings.
func texts(t *testing.T, value any) []string {
	t.Helper()
	list, ok := value.([]any)
	if !ok {
		t.Fatalf("%v is no list", value)
	}
	var found []string
	for _, one := range list {
		text, ok := one.(string)
		if !ok {
			t.Fatalf("%v is no text", one)
		}
		found = append(found, text)
	}
	return found
}

var guid = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
