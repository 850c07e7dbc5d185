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

// tokens splits a file.
func tokens(path, source string) []token {
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
				panic(wrongf("%s:%d: a text without an end", path, line))
			}
			add("text", strings.TrimPrefix(text, "\n"))
			line += strings.Count(text, "\n")
			rest = after
		case c == '\'':
			rest = textUntilBreak(path, rest[1:], add, &depths, line)
		case c == '}' && len(depths) > 0 && depths[len(depths)-1] == 0:
			depths = depths[:len(depths)-1]
			add(")", "")
			rest = textUntilBreak(path, rest[1:], add, &depths, line)
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
				panic(wrongf("%s:%d: what is %q?", path, line, rest[:1]))
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
func textUntilBreak(path, rest string, add func(kind, text string), depths *[]int, line int) string {
	var text strings.Builder
	for i := 0; i < len(rest); i++ {
		switch {
		case rest[i] == '\\' && i+1 < len(rest):
			i++
			c, ok := map[byte]byte{'n': '\n', 'r': '\r', 't': '\t', '\'': '\'', '\\': '\\', '$': '$'}[rest[i]]
			if !ok {
				panic(wrongf("%s:%d: \\%c is no escape", path, line, rest[i]))
			}
			text.WriteByte(c)
		case rest[i] == '\'':
			add("text", text.String())
			return rest[i+1:]
		case strings.HasPrefix(rest[i:], "${"):
			add("text", text.String())
			add("(", "$")
			*depths = append(*depths, 0)
			return rest[i+2:]
		case rest[i] == '\n':
			panic(wrongf("%s:%d: a text without an end", path, line))
		default:
			text.WriteByte(rest[i])
		}
	}
	panic(wrongf("%s:%d: a text without an end", path, line))
}

// declaration is one param, var, resource, module or output.
type declaration struct {
	kind, name string
	// is is the type of a param or output, the resource type or the module's file.
	is         string
	nullable   bool
	existing   bool
	decorators map[string]any
	// condition and loop are those of a resource or module: if (condition), [for item, index in loop: ...].
	condition *node
	// expr is what follows the equals sign, nil without one; value is the same read as a literal.
	expr   *node
	value  any
	tokens []token // of the value, and of the condition
	line   int
}

// expression is a value that is not a literal.
type expression []token

// node is one node of a parsed expression.
type node struct {
	// op is text, number, bool, null, name, interpolation, object, array, for, lambda, call, method, spread, if, or the
	// operator: . .? :: [] ?: ?? || && == != < <= > >= + - * / % ! and neg.
	op     string
	text   string // of a text, name, member, function
	number int
	args   []*node
	keys   []*node // of an object: a text or interpolation for each of args, nil for a spread
	nested []declaration
	names  []string // of a loop or lambda
	tokens []token
	line   int
	// seen is set when the node was evaluated.
	seen bool
}

// bicep is one file.
type bicep struct {
	path         string
	declarations []declaration
	using        string
	tokens       []token
}

// read reads a .bicep or .bicepparam file.
func read(t *testing.T, path string) bicep {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := parse(path, string(data))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// parse reads the text of a file.
func parse(path, source string) (b bicep, err error) {
	defer func() {
		if p, ok := recover().(problem); ok {
			err = p
		}
	}()
	p := parser{path: path, list: tokens(path, source)}
	b = p.file()
	b.tokens = p.list
	return b, nil
}

// problem is something that is wrong with the templates. The parser and the evaluator panic with it.
type problem string

func (p problem) Error() string { return string(p) }

func wrongf(format string, args ...any) problem { return problem(fmt.Sprintf(format, args...)) }

// sourcesOfTemplates returns the text of all templates by path below infra/, main.bicep among them.
func sourcesOfTemplates(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("modules/*.bicep")
	if err != nil || len(paths) == 0 {
		t.Fatalf("there are no modules (%v)", err)
	}
	all := map[string]string{}
	for _, path := range append(paths, "main.bicep", "small.bicepparam", "large.bicepparam", "main.bicepparam") {
		all[filepath.ToSlash(path)] = readText(t, path)
	}
	return all
}

// templates returns all templates by path below infra/, main.bicep among them.
func templates(t *testing.T) map[string]bicep {
	t.Helper()
	all := map[string]bicep{}
	for path := range sourcesOfTemplates(t) {
		if strings.HasSuffix(path, ".bicep") {
			all[path] = read(t, path)
		}
	}
	return all
}

// find returns a declaration by kind and name; it must be there.
func (b bicep) find(t *testing.T, kind, name string) declaration {
	t.Helper()
	if d, ok := b.lookup(kind, name); ok {
		return d
	}
	t.Fatalf("%s has no %s %s", b.path, kind, name)
	return declaration{}
}

func (b bicep) lookup(kind, name string) (declaration, bool) {
	for _, d := range b.declarations {
		if d.kind == kind && d.name == name {
			return d, true
		}
	}
	return declaration{}, false
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

// value returns the value of a parameter file, or the default of a template.
func (b bicep) value(t *testing.T, kind, name string) any {
	t.Helper()
	return b.find(t, kind, name).value
}

type parser struct {
	path string
	list []token
	at   int
}

func (p *parser) peek() token {
	if p.at >= len(p.list) {
		panic(wrongf("%s: the file ends in the middle", p.path))
	}
	return p.list[p.at]
}

func (p *parser) next() token {
	one := p.peek()
	p.at++
	return one
}

func (p *parser) skip(kinds ...string) bool {
	found := false
	for p.at < len(p.list) && slices.Contains(kinds, p.list[p.at].kind) {
		p.at++
		found = true
	}
	return found
}

func (p *parser) want(kind string) token {
	if p.at >= len(p.list) || p.list[p.at].kind != kind {
		panic(wrongf("%s:%d: %s is missing", p.path, p.list[min(p.at, len(p.list)-1)].line, kind))
	}
	return p.next()
}

func (p *parser) word(text string) bool {
	if p.at < len(p.list) && p.list[p.at].kind == "name" && p.list[p.at].text == text {
		p.at++
		return true
	}
	return false
}

func (p *parser) file() bicep {
	b := bicep{path: p.path}
	decorators := map[string]any{}
	for p.skip("newline"); p.at < len(p.list); p.skip("newline") {
		if p.skip("@") {
			name := p.want("name").text
			if !slices.Contains([]string{"allowed", "description", "maxLength", "maxValue", "minLength", "minValue", "secure"}, name) {
				panic(wrongf("%s:%d: @%s is not a decorator that these templates use", p.path, p.peek().line, name))
			}
			p.want("(")
			decorators[name] = nil
			if p.skip("newline"); p.peek().kind != ")" {
				decorators[name] = literal(p.value())
			}
			p.skip("newline")
			p.want(")")
			continue
		}
		one := p.want("name")
		switch one.text {
		case "targetScope":
			p.want("=")
			p.value()
		case "using":
			b.using = p.want("text").text
		case "param", "var", "output", "resource", "module":
			d := p.declaration(one)
			d.decorators = decorators
			decorators = map[string]any{}
			b.declarations = append(b.declarations, d)
		default:
			panic(wrongf("%s:%d: what is %q?", p.path, one.line, one.text))
		}
		if p.at < len(p.list) && p.peek().kind != "newline" {
			panic(wrongf("%s:%d: a line goes on after its end", p.path, p.peek().line))
		}
	}
	return b
}

// declaration reads what follows the keyword.
func (p *parser) declaration(keyword token) declaration {
	d := declaration{kind: keyword.text, line: keyword.line}
	d.name = p.want("name").text
	if p.peek().kind != "=" && p.peek().kind != "newline" {
		d.is = p.next().text
		d.nullable = p.skip("?")
	}
	d.existing = p.word("existing")
	if !p.skip("=") {
		return d
	}
	from := p.at
	if d.kind == "resource" || d.kind == "module" {
		d.condition = p.condition()
	}
	d.expr = p.value()
	d.tokens = p.list[from:p.at]
	d.value = literal(d.expr)
	return d
}

// condition reads if (...), or nothing.
func (p *parser) condition() *node {
	if !p.word("if") {
		return nil
	}
	p.want("(")
	p.skip("newline")
	c := p.value()
	p.skip("newline")
	p.want(")")
	return c
}

// value reads an expression.
func (p *parser) value() *node { return p.node(p.ternary) }

// node notes the tokens that what reads.
func (p *parser) node(read func() *node) *node {
	from, line := p.at, p.peek().line
	n := read()
	if n.tokens == nil {
		n.tokens, n.line = p.list[from:p.at], line
	}
	return n
}

// continues reports whether the value goes on with one of kinds, also on the next line, and skips it.
func (p *parser) continues(kinds ...string) (string, bool) {
	i := p.at
	for i < len(p.list) && p.list[i].kind == "newline" {
		i++
	}
	if i == len(p.list) || !slices.Contains(kinds, p.list[i].kind) {
		return "", false
	}
	p.at = i + 1
	p.skip("newline")
	return p.list[i].kind, true
}

func (p *parser) ternary() *node {
	condition := p.node(func() *node { return p.binary(0) })
	if _, ok := p.continues("?"); !ok {
		return condition
	}
	yes := p.value()
	if _, ok := p.continues(":"); !ok {
		panic(wrongf("%s:%d: a ? has no :", p.path, condition.line))
	}
	return &node{op: "?:", args: []*node{condition, yes, p.value()}}
}

// levels are the operators with two sides, the weakest first.
var levels = [][]string{{"??"}, {"||"}, {"&&"}, {"==", "!=", "=~", "!~"}, {"<", "<=", ">", ">="}, {"+", "-"}, {"*", "/", "%"}}

func (p *parser) binary(level int) *node {
	if level == len(levels) {
		return p.node(p.unary)
	}
	left := p.node(func() *node { return p.binary(level + 1) })
	for {
		// Only these may begin a line: a line that begins with - or [ is another item.
		kinds := levels[level]
		if level > 2 && (p.at == len(p.list) || !slices.Contains(kinds, p.list[p.at].kind)) {
			return left
		}
		op, ok := p.continues(kinds...)
		if !ok {
			return left
		}
		left = &node{op: op, args: []*node{left, p.node(func() *node { return p.binary(level + 1) })}, line: left.line}
	}
}

func (p *parser) unary() *node {
	switch {
	case p.skip("!"):
		return &node{op: "!", args: []*node{p.node(p.unary)}}
	case p.peek().kind == "-":
		p.next()
		return &node{op: "neg", args: []*node{p.node(p.unary)}}
	}
	n := p.node(p.primary)
	for {
		line := p.list[min(p.at, len(p.list)-1)].line
		switch {
		case p.at == len(p.list):
			return n
		case p.peek().kind == "!" && !(p.at+1 < len(p.list) && p.list[p.at+1].kind == "="):
			p.next() // not null, says the author
		case p.peek().kind == "." || p.peek().kind == ".?" || p.peek().kind == "::":
			op := p.next().kind
			n = &node{op: op, text: p.want("name").text, args: []*node{n}, line: line}
			if op == "." && p.peek().kind == "(" && p.peek().text == "" {
				n.op, n.args = "method", append(n.args, p.arguments()...)
			}
		case p.peek().kind == "[":
			p.next()
			p.skip("newline")
			index := p.value()
			p.skip("newline")
			p.want("]")
			n = &node{op: "[]", args: []*node{n, index}, line: line}
		default:
			return n
		}
	}
}

func (p *parser) arguments() []*node {
	var args []*node
	p.want("(")
	for p.skip("newline", ","); p.peek().kind != ")"; p.skip("newline", ",") {
		args = append(args, p.value())
	}
	p.next()
	return args
}

func (p *parser) primary() *node {
	one := p.next()
	switch one.kind {
	case "text":
		n := &node{op: "text", text: one.text}
		for p.at < len(p.list) && p.peek().kind == "(" && p.peek().text == "$" {
			if n.op == "text" {
				n = &node{op: "interpolation", args: []*node{{op: "text", text: one.text, tokens: []token{one}, line: one.line}}}
			}
			p.next()
			inside := p.value()
			p.want(")")
			rest := p.want("text")
			n.args = append(n.args, inside, &node{op: "text", text: rest.text, tokens: []token{rest}, line: rest.line})
		}
		return n
	case "number":
		number, err := strconv.Atoi(one.text)
		if err != nil {
			panic(wrongf("%s:%d: %v", p.path, one.line, err))
		}
		return &node{op: "number", number: number}
	case "name":
		switch {
		case one.text == "true" || one.text == "false":
			return &node{op: "bool", text: one.text}
		case one.text == "null":
			return &node{op: "null"}
		case p.peek().kind == "=>":
			p.next()
			return &node{op: "lambda", names: []string{one.text}, args: []*node{p.value()}}
		case p.peek().kind == "(" && p.peek().text == "":
			return &node{op: "call", text: one.text, args: p.arguments()}
		}
		return &node{op: "name", text: one.text}
	case "(":
		p.skip("newline")
		n := p.value()
		p.skip("newline")
		p.want(")")
		return n
	case "[":
		return p.array()
	case "{":
		return p.object()
	}
	panic(wrongf("%s:%d: a value is missing before %q", p.path, one.line, one.kind+one.text))
}

func (p *parser) array() *node {
	if p.skip("newline"); p.word("for") {
		n := &node{op: "for"}
		if p.skip("(") {
			n.names = []string{p.want("name").text}
			p.want(",")
			n.names = append(n.names, p.want("name").text)
			p.want(")")
		} else {
			n.names = []string{p.want("name").text}
		}
		if !p.word("in") {
			panic(wrongf("%s:%d: a loop has no in", p.path, p.peek().line))
		}
		list := p.value()
		p.want(":")
		condition := p.condition()
		if condition == nil {
			condition = &node{op: "bool", text: "true", tokens: []token{}, line: list.line}
		}
		n.args = []*node{list, condition, p.value()}
		p.skip("newline")
		p.want("]")
		return n
	}
	n := &node{op: "array"}
	for p.skip("newline", ","); p.peek().kind != "]"; p.skip("newline", ",") {
		n.args = append(n.args, p.item())
	}
	p.next()
	return n
}

// item reads a value or ...value.
func (p *parser) item() *node {
	return p.node(func() *node {
		if p.skip("...") {
			return &node{op: "spread", args: []*node{p.value()}}
		}
		return p.value()
	})
}

func (p *parser) object() *node {
	n := &node{op: "object"}
	for p.skip("newline", ","); p.peek().kind != "}"; p.skip("newline", ",") {
		if p.peek().kind == "..." {
			n.keys, n.args = append(n.keys, nil), append(n.args, p.item())
			continue
		}
		if p.peek().text == "resource" && p.list[p.at+1].kind == "name" {
			n.nested = append(n.nested, p.declaration(p.next()))
			continue
		}
		key := p.node(p.primary)
		switch key.op {
		case "name":
			key.op = "text"
		case "bool", "null":
			key.op, key.text = "text", key.tokens[0].text
		case "text", "interpolation":
		default:
			panic(wrongf("%s:%d: a key is missing", p.path, key.line))
		}
		for _, other := range n.keys {
			if other != nil && other.op == "text" && key.op == "text" && other.text == key.text {
				panic(wrongf("%s:%d: %s is given twice", p.path, key.line, key.text))
			}
		}
		p.want(":")
		n.keys, n.args = append(n.keys, key), append(n.args, p.value())
	}
	p.next()
	return n
}

// literal reads a node as a string, int, bool, nil, []any or map[string]any; what is none is an expression.
func literal(n *node) any {
	switch n.op {
	case "text":
		return n.text
	case "number":
		return n.number
	case "neg":
		if n.args[0].op == "number" {
			return -n.args[0].number
		}
	case "bool":
		return n.text == "true"
	case "null":
		return nil
	case "array":
		list := []any{}
		for _, one := range n.args {
			list = append(list, literal(one))
		}
		return list
	case "object":
		object := map[string]any{}
		for i, one := range n.args {
			if n.keys[i] == nil || n.keys[i].op != "text" {
				return expression(n.tokens)
			}
			object[n.keys[i].text] = literal(one)
		}
		for _, d := range n.nested {
			object["resource "+d.name] = d.value
		}
		return object
	}
	return expression(n.tokens)
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
