package infra_test

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"strings"
)

// An evaluator of Bicep: from the templates and the values of parameters to the resources that Azure would be sent.

// deployed is one resource as it would be sent.
type deployed struct {
	file, symbol string
	line         int
	// kind is the resource type without its version, name the full name, with that of its parents.
	kind, version, name string
	// scope is the id of the resource that an extension resource belongs to.
	scope string
	id    string
	// body has all properties but parent, scope and dependsOn.
	body map[string]any
}

// runtime is a value that is known only while a deployment runs: properties of resources, and outputs of modules.
type runtime struct{ value any }

// known strips what is only known at run time of that mark, all through a value.
func known(value any) any {
	switch v := value.(type) {
	case runtime:
		return known(v.value)
	case []any:
		list := make([]any, len(v))
		for i, one := range v {
			list[i] = known(one)
		}
		return list
	case map[string]any:
		object := map[string]any{}
		for key, one := range v {
			object[key] = known(one)
		}
		return object
	}
	return value
}

// symbol is a name of a file: its value is computed when it is asked for.
type symbol struct {
	declaration *declaration
	value       any
	done, busy  bool
}

// reference is a resource or module that an expression names.
type reference struct {
	*deployed
	// absent: its condition is false. existing: it is not created here.
	absent, existing bool
	outputs          map[string]any
	isModule         bool
}

// evaluation is the state of one evaluation, of all files.
type evaluation struct {
	files     map[string]bicep
	types     map[string]any
	resources []*deployed
	// environment are the variables that parameter files read.
	environment map[string]string
}

// scope is one file that is being evaluated.
type scope struct {
	*evaluation
	file    bicep
	symbols map[string]*symbol
}

// deploy evaluates a file with parameters and returns its outputs.
func (e *evaluation) deploy(file string, params map[string]any) map[string]any {
	b := e.files[file]
	s := &scope{evaluation: e, file: b, symbols: map[string]*symbol{}}
	for i := range b.declarations {
		if d := &b.declarations[i]; d.kind != "output" {
			s.symbols[d.name] = &symbol{declaration: d}
		}
	}
	for name := range params {
		if d, ok := b.lookup("param", name); !ok {
			panic(wrongf("%s has no parameter %s", file, d.name+name))
		}
	}
	for _, d := range b.all("param") {
		value, given := params[d.name]
		one := s.symbols[d.name]
		switch {
		case given:
			one.value, one.done = value, true
		case d.expr == nil && d.nullable:
			one.done = true
		case d.expr == nil:
			panic(wrongf("%s: the parameter %s is missing", file, d.name))
		}
		s.checkParameter(d, s.lookup(d.name, nil))
	}
	for _, d := range b.declarations {
		if d.kind != "output" {
			s.lookup(d.name, nil)
		}
	}
	outputs := map[string]any{}
	for _, d := range b.all("output") {
		value := s.eval(d.expr, nil)
		if got := kindOf(value); got != d.is {
			panic(wrongf("%s:%d: output %s is %s, not %s", file, d.line, d.name, got, d.is))
		}
		outputs[d.name] = runtime{known(value)}
	}
	return outputs
}

// checkParameter checks a value against the type and the decorators of its parameter.
func (s *scope) checkParameter(d declaration, value any) {
	value = known(value)
	if value == nil && d.nullable {
		return
	}
	if got := kindOf(value); got != d.is {
		panic(wrongf("%s: the parameter %s is %s, not %s", s.file.path, d.name, got, d.is))
	}
	size := 0
	switch v := value.(type) {
	case int:
		if least, ok := d.decorators["minValue"].(int); ok && v < least {
			panic(wrongf("%s: %s is %d, below %d", s.file.path, d.name, v, least))
		}
		if most, ok := d.decorators["maxValue"].(int); ok && v > most {
			panic(wrongf("%s: %s is %d, above %d", s.file.path, d.name, v, most))
		}
	case string:
		size = len(v)
	case []any:
		size = len(v)
	}
	if least, ok := d.decorators["minLength"].(int); ok && size < least {
		panic(wrongf("%s: %s has fewer than %d characters or items", s.file.path, d.name, least))
	}
	if most, ok := d.decorators["maxLength"].(int); ok && size > most {
		panic(wrongf("%s: %s has more than %d characters or items", s.file.path, d.name, most))
	}
	if allowed, ok := d.decorators["allowed"].([]any); ok && !slices.Contains(allowed, value) {
		panic(wrongf("%s: %s is %v, want one of %v", s.file.path, d.name, value, allowed))
	}
}

// kindOf is the Bicep type of a value.
func kindOf(value any) string {
	switch v := value.(type) {
	case runtime:
		return kindOf(v.value)
	case string:
		return "string"
	case int:
		return "int"
	case bool:
		return "bool"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	case nil:
		return "null"
	case reference:
		return "resource"
	}
	return fmt.Sprintf("%T", value)
}

// lookup returns the value of a name.
func (s *scope) lookup(name string, n *node) any {
	one, ok := s.symbols[name]
	switch {
	case !ok:
		panic(wrongf("%s:%d: %s is not declared", s.file.path, n.line, name))
	case one.done:
		return one.value
	case one.busy:
		panic(wrongf("%s:%d: %s needs itself", s.file.path, one.declaration.line, name))
	}
	one.busy = true
	d := one.declaration
	switch d.kind {
	case "param", "var":
		one.value = s.eval(d.expr, nil)
	case "module":
		one.value = s.module(d)
	case "resource":
		one.value = s.resource(d, nil)
	}
	one.done = true
	return one.value
}

// local are the variables of loops and lambdas, and the resource that is around nested ones.
type local map[string]any

func (l local) with(name string, value any) local {
	more := maps.Clone(l)
	if more == nil {
		more = local{}
	}
	more[name] = value
	return more
}

func (s *scope) module(d *declaration) any {
	file := path.Join(path.Dir(s.file.path), d.is)
	if _, ok := s.files[file]; !ok {
		panic(wrongf("%s:%d: there is no %s", s.file.path, d.line, file))
	}
	if !s.deploys(d.condition, nil) {
		return reference{absent: true, isModule: true}
	}
	body := s.object(d.expr, nil)
	for key := range body {
		if !slices.Contains([]string{"name", "params", "dependsOn", "scope"}, key) {
			panic(wrongf("%s:%d: a module has no %s", s.file.path, d.line, key))
		}
	}
	s.fixed(body["name"], "the name of the module "+d.name, d.line)
	params, _ := body["params"].(map[string]any)
	return reference{isModule: true, outputs: s.deploy(file, params)}
}

func (s *scope) deploys(condition *node, l local) bool {
	if condition == nil {
		return true
	}
	value := s.eval(condition, l)
	s.fixed(value, "a condition", condition.line)
	is, ok := value.(bool)
	if !ok {
		panic(wrongf("%s:%d: a condition is %s, not bool", s.file.path, condition.line, kindOf(value)))
	}
	return is
}

// fixed demands a value that is known before the deployment starts. Otherwise a preview (--what-if) cannot show it.
func (s *scope) fixed(value any, what string, line int) {
	if _, ok := value.(runtime); ok {
		panic(wrongf("%s:%d: %s is known only while the deployment runs, so that --what-if is blind for it", s.file.path, line, what))
	}
}

// resource evaluates a resource, or a list of them from a loop.
func (s *scope) resource(d *declaration, parent *deployed) any {
	if d.expr.op == "for" {
		list := []any{}
		s.each(d.expr, nil, func(body *node, l local, deploys bool) {
			list = append(list, s.one(d, body, l, parent, deploys))
		})
		return list
	}
	return s.one(d, d.expr, nil, parent, s.deploys(d.condition, nil))
}

func (s *scope) one(d *declaration, body *node, l local, parent *deployed, deploys bool) any {
	at := &deployed{file: s.file.path, symbol: d.name, line: d.line}
	kind, version, _ := strings.Cut(d.is, "@")
	if parent != nil {
		kind = parent.kind + "/" + kind
		if version == "" {
			version = parent.version
		}
	}
	at.kind, at.version = kind, version
	if s.types[kind+"@"+version] == nil {
		panic(wrongf("%s:%d: there is no type %s@%s", s.file.path, d.line, kind, version))
	}
	at.body = s.object(body, l)
	if !d.existing {
		s.fixed(at.body["name"], "the name of "+d.name, d.line)
	}
	name, _ := known(at.body["name"]).(string)
	if name == "" {
		panic(wrongf("%s:%d: %s has no name", s.file.path, d.line, d.name))
	}
	at.name = name
	if one, ok := at.body["parent"]; ok {
		ref, ok := one.(reference)
		if !ok || ref.deployed == nil {
			panic(wrongf("%s:%d: the parent of %s is no resource", s.file.path, d.line, d.name))
		}
		if deploys && ref.absent {
			panic(wrongf("%s:%d: %s is created, its parent is not", s.file.path, d.line, d.name))
		}
		parent = ref.deployed
	}
	if parent != nil {
		if path.Dir(kind) != parent.kind {
			panic(wrongf("%s:%d: %s cannot be the parent of %s", s.file.path, d.line, parent.kind, kind))
		}
		at.name = parent.name + "/" + name
	} else if want := strings.Count(kind, "/") - 1; strings.Count(name, "/") != want {
		panic(wrongf("%s:%d: the name of a %s has %d slashes, or it has a parent", s.file.path, d.line, kind, want))
	}
	if one, ok := at.body["scope"]; ok {
		ref, ok := one.(reference)
		if !ok || ref.deployed == nil {
			panic(wrongf("%s:%d: the scope of %s is no resource", s.file.path, d.line, d.name))
		}
		if deploys && ref.absent {
			panic(wrongf("%s:%d: %s is created, its scope is not", s.file.path, d.line, d.name))
		}
		at.scope = ref.id
	}
	for _, one := range asList(at.body["dependsOn"]) {
		for _, on := range append(asList(one), one) {
			_, isReference := on.(reference)
			if _, isList := on.([]any); !isReference && !isList {
				panic(wrongf("%s:%d: %s depends on what is no resource", s.file.path, d.line, d.name))
			}
		}
	}
	at.id = resourceID(at.scope, kind, at.name)
	for _, key := range []string{"parent", "scope", "dependsOn"} {
		delete(at.body, key)
	}
	ref := reference{deployed: at, absent: !deploys, existing: d.existing}
	if deploys && !d.existing {
		s.resources = append(s.resources, at)
	}
	for i := range body.nested {
		inner := &body.nested[i]
		if s.symbols[d.name+"::"+inner.name] == nil {
			s.symbols[d.name+"::"+inner.name] = &symbol{done: true, value: s.resource(inner, at)}
		}
	}
	return ref
}

func asList(value any) []any {
	list, _ := value.([]any)
	return list
}

// resourceID is the id of a resource of the group.
func resourceID(scope, kind, name string) string {
	parts := strings.Split(kind, "/")
	names := strings.Split(name, "/")
	id := scope + "/providers/" + parts[0]
	if scope == "" {
		id = groupID + "/providers/" + parts[0]
	}
	for i, one := range names {
		id += "/" + parts[min(i+1, len(parts)-1)] + "/" + one
	}
	return id
}

const groupID = "/subscriptions/00000000-0000-0000-0000-00000000000a/resourceGroups/group"

// each calls do for each item of a loop.
func (s *scope) each(loop *node, l local, do func(body *node, l local, deploys bool)) {
	loop.seen = true
	list := s.eval(loop.args[0], l)
	s.fixed(list, "the list of a loop", loop.line)
	if kindOf(list) != "array" {
		panic(wrongf("%s:%d: a loop goes over %s", s.file.path, loop.line, kindOf(list)))
	}
	for i, item := range asList(list) {
		if _, ok := item.(reference); ok {
			panic(wrongf("%s:%d: a loop goes over resources", s.file.path, loop.line))
		}
		inner := l.with(loop.names[0], item)
		if len(loop.names) > 1 {
			inner = inner.with(loop.names[1], i)
		}
		do(loop.args[2], inner, s.deploys(loop.args[1], inner))
	}
}

func (s *scope) object(n *node, l local) map[string]any {
	object, ok := s.eval(n, l).(map[string]any)
	if !ok {
		panic(wrongf("%s:%d: an object is missing", s.file.path, n.line))
	}
	return object
}

// text evaluates a node that must be a string.
func (s *scope) text(n *node, l local) (value string, atRuntime bool) {
	one := s.eval(n, l)
	if r, ok := one.(runtime); ok {
		one, atRuntime = r.value, true
	}
	switch v := one.(type) {
	case string:
		return v, atRuntime
	case int, bool:
		return fmt.Sprint(v), atRuntime
	}
	panic(wrongf("%s:%d: %s is put into a text", s.file.path, n.line, kindOf(one)))
}

// eval computes a node.
func (s *scope) eval(n *node, l local) any {
	n.seen = true
	wrong := func(format string, args ...any) problem {
		return wrongf("%s:%d: %s", s.file.path, n.line, fmt.Sprintf(format, args...))
	}
	switch n.op {
	case "text":
		return n.text
	case "number":
		return n.number
	case "bool":
		return n.text == "true"
	case "null":
		return nil
	case "interpolation":
		var text strings.Builder
		atRuntime := false
		for _, one := range n.args {
			part, isRuntime := s.text(one, l)
			text.WriteString(part)
			atRuntime = atRuntime || isRuntime
		}
		if atRuntime {
			return runtime{text.String()}
		}
		return text.String()
	case "name":
		if value, ok := l[n.text]; ok {
			return value
		}
		return s.lookup(n.text, n)
	case "array":
		list := []any{}
		for _, one := range n.args {
			if one.op != "spread" {
				list = append(list, s.eval(one, l))
				continue
			}
			one.seen = true
			more := s.eval(one.args[0], l)
			if kindOf(more) != "array" {
				panic(wrong("a spread in an array is %s", kindOf(more)))
			}
			list = append(list, asList(more)...)
		}
		return list
	case "object":
		object := map[string]any{}
		for i, one := range n.args {
			if n.keys[i] == nil {
				one.seen = true
				more, ok := s.eval(one.args[0], l).(map[string]any)
				if !ok {
					panic(wrong("a spread in an object is no object"))
				}
				maps.Copy(object, more)
				continue
			}
			key, _ := s.text(n.keys[i], l)
			object[key] = s.eval(one, l)
		}
		return object
	case "for":
		list := []any{}
		s.each(n, l, func(body *node, l local, deploys bool) {
			if deploys {
				list = append(list, s.eval(body, l))
			}
		})
		return list
	case "?:":
		condition := s.eval(n.args[0], l)
		which := 2
		is, ok := known(condition).(bool)
		if !ok {
			panic(wrong("a condition is %s", kindOf(condition)))
		}
		if is {
			which = 1
		}
		value := s.eval(n.args[which], l)
		if _, ok := condition.(runtime); ok {
			return runtime{known(value)}
		}
		return value
	case "??":
		if value := s.eval(n.args[0], l); known(value) != nil {
			return value
		}
		return s.eval(n.args[1], l)
	case "&&", "||":
		both := []any{s.eval(n.args[0], l), s.eval(n.args[1], l)}
		left, ok := known(both[0]).(bool)
		right, ok2 := known(both[1]).(bool)
		if !ok || !ok2 {
			panic(wrong("%s joins what is not bool", n.op))
		}
		return like(left && right || n.op == "||" && (left || right), both...)
	case "!":
		value := s.eval(n.args[0], l)
		is, ok := known(value).(bool)
		if !ok {
			panic(wrong("! of what is not bool"))
		}
		return like(!is, value)
	case "neg":
		return -s.integer(n.args[0], l)
	case "==", "!=":
		both := []any{s.eval(n.args[0], l), s.eval(n.args[1], l)}
		left, right := known(both[0]), known(both[1])
		if kindOf(left) != kindOf(right) && left != nil && right != nil {
			panic(wrong("%s is compared with %s", kindOf(left), kindOf(right)))
		}
		return like((left == right) == (n.op == "=="), both...)
	case "<", "<=", ">", ">=", "+", "-", "*", "/", "%":
		return s.arithmetic(n, s.integer(n.args[0], l), s.integer(n.args[1], l))
	case ".", ".?":
		return s.member(s.eval(n.args[0], l), n)
	case "::":
		if one := s.symbols[n.args[0].text+"::"+n.text]; one != nil {
			return one.value
		}
		s.eval(n.args[0], l)
		if one := s.symbols[n.args[0].text+"::"+n.text]; one != nil {
			return one.value
		}
		panic(wrong("there is no %s inside %s", n.text, n.args[0].text))
	case "[]":
		return s.index(s.eval(n.args[0], l), s.eval(n.args[1], l), n)
	case "call":
		return s.call(n, l)
	case "method":
		object := s.eval(n.args[0], l)
		ref, ok := object.(reference)
		if !ok || ref.deployed == nil || ref.kind != "Microsoft.Storage/storageAccounts" || n.text != "listKeys" {
			panic(wrong("%s is not a call that these templates use", n.text))
		}
		return runtime{map[string]any{"keys": []any{map[string]any{"value": "KEY"}}}}
	}
	panic(wrong("%s cannot be evaluated", n.op))
}

// like marks a value as known at run time only when one of those is that it is computed from.
func like(value any, from ...any) any {
	for _, one := range from {
		if _, ok := one.(runtime); ok {
			return runtime{value}
		}
	}
	return value
}

func (s *scope) integer(n *node, l local) int {
	value := known(s.eval(n, l))
	number, ok := value.(int)
	if !ok {
		panic(wrongf("%s:%d: %s where a number is needed", s.file.path, n.line, kindOf(value)))
	}
	return number
}

func (s *scope) arithmetic(n *node, left, right int) any {
	switch n.op {
	case "<":
		return left < right
	case "<=":
		return left <= right
	case ">":
		return left > right
	case ">=":
		return left >= right
	case "+":
		return left + right
	case "-":
		return left - right
	case "*":
		return left * right
	case "/":
		return left / right
	}
	return left % right
}

// member is value.name.
func (s *scope) member(value any, n *node) any {
	wrong := func(format string, args ...any) problem {
		return wrongf("%s:%d: %s", s.file.path, n.line, fmt.Sprintf(format, args...))
	}
	switch v := value.(type) {
	case runtime:
		return runtime{known(s.member(v.value, n))}
	case map[string]any:
		one, ok := v[n.text]
		if !ok && n.op != ".?" {
			panic(wrong("there is no %s: there is %s", n.text, strings.Join(slices.Sorted(maps.Keys(v)), ", ")))
		}
		return one
	case typed:
		return s.property(v, n)
	case reference:
		if v.isModule {
			if n.text != "outputs" {
				panic(wrong("a module has no %s", n.text))
			}
			if v.absent {
				panic(wrong("the outputs of a module that is not deployed are needed"))
			}
			return v.outputs
		}
		switch n.text {
		case "id":
			return v.id
		case "name":
			return path.Base(v.name)
		case "type":
			return v.kind
		}
		if v.absent {
			panic(wrong("%s of a resource that is not created is needed", n.text))
		}
		return s.property(typed{v.deployed, s.types[v.kind+"@"+v.version], v.body, v.kind}, n)
	}
	panic(wrong("%s has no %s", kindOf(value), n.text))
}

// typed is a part of a resource that an expression reads, with its type.
type typed struct {
	of     *deployed
	schema any
	value  any
	path   string
}

// property reads a property of a resource. It is known at run time only, whether the template sets it or not.
func (s *scope) property(from typed, n *node) any {
	schema, ok := from.schema.(map[string]any)
	if !ok {
		panic(wrongf("%s:%d: %s has no properties", s.file.path, n.line, from.path))
	}
	member, ok := memberOf(schema, n.text)
	if !ok {
		panic(wrongf("%s:%d: %s has no property %s", s.file.path, n.line, from.path, n.text))
	}
	object, _ := from.value.(map[string]any)
	to := typed{from.of, member, object[n.text], from.path + "." + n.text}
	if _, ok := member.(map[string]any); ok {
		return to
	}
	if to.value != nil {
		return runtime{known(to.value)}
	}
	name := path.Base(from.of.name)
	switch n.text {
	case "serviceBusEndpoint":
		return runtime{"https://" + name + ".servicebus.windows.net:443/"}
	case "documentEndpoint":
		return runtime{"https://" + name + ".documents.azure.com:443/"}
	case "hostName":
		return runtime{name + ".westeurope.redis.azure.net"}
	case "defaultHostName":
		return runtime{name + ".azurewebsites.net"}
	case "principalId", "clientId":
		return runtime{fakeGUID(n.text + name)}
	}
	if member == "int" {
		return runtime{1}
	}
	return runtime{"<" + name + " " + n.text + ">"}
}

func (s *scope) index(value, index any, n *node) any {
	if r, ok := value.(runtime); ok {
		return runtime{known(s.index(r.value, known(index), n))}
	}
	index = known(index)
	switch v := value.(type) {
	case []any:
		i, ok := index.(int)
		if !ok || i < 0 || i >= len(v) {
			panic(wrongf("%s:%d: there is no item %v in a list of %d", s.file.path, n.line, index, len(v)))
		}
		return v[i]
	case map[string]any:
		one, ok := v[fmt.Sprint(index)]
		if !ok {
			panic(wrongf("%s:%d: there is no %v", s.file.path, n.line, index))
		}
		return one
	}
	panic(wrongf("%s:%d: %s has no items", s.file.path, n.line, kindOf(value)))
}

func fakeGUID(seed string) string {
	sum := sha256.Sum256([]byte(seed))
	h := hex.EncodeToString(sum[:16])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// signatures are the kinds of the arguments of the functions that these templates call; * is any, ... repeats the last.
var signatures = map[string]string{
	"cidrSubnet": "string int int", "concat": "array ...", "contains": "* *", "empty": "*", "endsWith": "string string", "environment": "", "fail": "string", "filter": "array lambda",
	"guid": "string ...", "int": "*", "items": "object", "join": "array string", "last": "array", "length": "*", "map": "array lambda", "max": "int ...", "min": "int ...",
	"range": "int int", "readEnvironmentVariable": "string ...", "replace": "string string string", "resourceGroup": "", "resourceId": "string string",
	"split": "string string", "startsWith": "string string", "string": "*", "substring": "string int int", "subscriptionResourceId": "string string", "take": "* int",
	"toLower": "string", "toObject": "array lambda lambda", "trim": "string", "union": "* ...", "uniqueString": "string ...",
}

func (s *scope) call(n *node, l local) any {
	wrong := func(format string, args ...any) problem {
		return wrongf("%s:%d: %s", s.file.path, n.line, fmt.Sprintf(format, args...))
	}
	signature, ok := signatures[n.text]
	if !ok {
		panic(wrong("%s is not a function that these templates use", n.text))
	}
	kinds := strings.Fields(signature)
	repeats := len(kinds) > 0 && kinds[len(kinds)-1] == "..."
	if repeats {
		kinds = kinds[:len(kinds)-1]
	}
	if len(n.args) < len(kinds) || len(n.args) > len(kinds) && !repeats {
		panic(wrong("%s gets %d arguments", n.text, len(n.args)))
	}
	args, atRuntime := make([]any, len(n.args)), false
	for i, one := range n.args {
		want := kinds[min(i, len(kinds)-1)]
		if want == "lambda" {
			if one.op != "lambda" {
				panic(wrong("argument %d of %s is no lambda", i+1, n.text))
			}
			one.seen = true
			args[i] = func(item any) any { return s.eval(one.args[0], l.with(one.names[0], item)) }
			continue
		}
		value := s.eval(one, l)
		if r, ok := value.(runtime); ok {
			value, atRuntime = r.value, true
		}
		if got := kindOf(value); want != "*" && got != want {
			panic(wrong("argument %d of %s is %s, not %s", i+1, n.text, got, want))
		}
		args[i] = value
	}
	value := s.apply(n.text, args, wrong)
	if atRuntime {
		return runtime{known(value)}
	}
	return value
}

func (s *scope) apply(name string, args []any, wrong func(string, ...any) problem) any {
	switch name {
	case "cidrSubnet":
		network, err := netip.ParsePrefix(args[0].(string))
		size, i := args[1].(int), args[2].(int)
		if err != nil || !network.Addr().Is4() || size < network.Bits() || i >= 1<<(size-network.Bits()) {
			panic(wrong("%v has no subnet %d of size /%d", args[0], i, size))
		}
		a := network.Masked().Addr().As4()
		at := binary.BigEndian.Uint32(a[:]) + uint32(i)<<(32-size)
		binary.BigEndian.PutUint32(a[:], at)
		return netip.PrefixFrom(netip.AddrFrom4(a), size).String()
	case "concat":
		list := []any{}
		for _, one := range args {
			list = append(list, one.([]any)...)
		}
		return list
	case "contains":
		switch v := args[0].(type) {
		case string:
			return strings.Contains(v, fmt.Sprint(args[1]))
		case []any:
			return slices.ContainsFunc(v, func(one any) bool { return known(one) == args[1] })
		case map[string]any:
			_, ok := v[fmt.Sprint(args[1])]
			return ok
		}
		panic(wrong("contains of %s", kindOf(args[0])))
	case "empty", "length":
		size := 0
		switch v := args[0].(type) {
		case string:
			size = len(v)
		case []any:
			size = len(v)
		case map[string]any:
			size = len(v)
		case nil:
		default:
			panic(wrong("%s of %s", name, kindOf(args[0])))
		}
		if name == "empty" {
			return size == 0
		}
		return size
	case "startsWith":
		return strings.HasPrefix(args[0].(string), args[1].(string))
	case "endsWith":
		return strings.HasSuffix(args[0].(string), args[1].(string))
	case "environment":
		return map[string]any{"suffixes": map[string]any{"storage": "core.windows.net", "sqlServerHostname": ".database.windows.net"}}
	case "fail":
		panic(problem("refused: " + args[0].(string)))
	case "filter":
		list := []any{}
		for _, one := range args[0].([]any) {
			if args[1].(func(any) any)(one) == true {
				list = append(list, one)
			}
		}
		return list
	case "guid", "uniqueString":
		var seed []string
		for _, one := range args {
			seed = append(seed, one.(string))
		}
		id := fakeGUID(strings.Join(seed, "|"))
		if name == "uniqueString" {
			return strings.ReplaceAll(id, "-", "")[:13]
		}
		return id
	case "int":
		switch v := args[0].(type) {
		case int:
			return v
		case string:
			n := 0
			if _, err := fmt.Sscan(v, &n); err == nil {
				return n
			}
		}
		panic(wrong("%v is no number", args[0]))
	case "items":
		object := args[0].(map[string]any)
		list := []any{}
		for _, key := range slices.Sorted(maps.Keys(object)) {
			list = append(list, map[string]any{"key": key, "value": object[key]})
		}
		return list
	case "join":
		var parts []string
		for _, one := range args[0].([]any) {
			parts = append(parts, fmt.Sprint(known(one)))
		}
		return strings.Join(parts, args[1].(string))
	case "last":
		list := args[0].([]any)
		if len(list) == 0 {
			return nil
		}
		return list[len(list)-1]
	case "map":
		list := []any{}
		for _, one := range args[0].([]any) {
			list = append(list, args[1].(func(any) any)(one))
		}
		return list
	case "max", "min":
		compare := func(a, b any) int { return cmp.Compare(a.(int), b.(int)) }
		if name == "max" {
			return slices.MaxFunc(args, compare)
		}
		return slices.MinFunc(args, compare)
	case "range":
		list := []any{}
		for i := range args[1].(int) {
			list = append(list, args[0].(int)+i)
		}
		return list
	case "readEnvironmentVariable":
		value, ok := s.environment[args[0].(string)]
		if !ok && len(args) > 1 {
			return args[1]
		}
		if !ok {
			panic(wrong("the environment has no %s", args[0]))
		}
		return value
	case "replace":
		return strings.ReplaceAll(args[0].(string), args[1].(string), args[2].(string))
	case "resourceGroup":
		return map[string]any{"id": groupID, "location": "westeurope", "name": "group"}
	case "resourceId":
		return resourceID("", args[0].(string), args[1].(string))
	case "split":
		list := []any{}
		for _, one := range strings.Split(args[0].(string), args[1].(string)) {
			list = append(list, one)
		}
		return list
	case "string":
		return fmt.Sprint(known(args[0]))
	case "substring":
		text, from, size := args[0].(string), args[1].(int), args[2].(int)
		if from < 0 || size < 0 || from+size > len(text) {
			panic(wrong("substring of %d characters from %d of %q", size, from, text))
		}
		return text[from : from+size]
	case "subscriptionResourceId":
		return "/subscriptions/00000000-0000-0000-0000-00000000000a/providers/" + args[0].(string) + "/" + args[1].(string)
	case "take":
		switch v := args[0].(type) {
		case string:
			return v[:min(len(v), args[1].(int))]
		case []any:
			return v[:min(len(v), args[1].(int))]
		}
		panic(wrong("take of %s", kindOf(args[0])))
	case "toLower":
		return strings.ToLower(args[0].(string))
	case "toObject":
		object := map[string]any{}
		for _, one := range args[0].([]any) {
			object[args[1].(func(any) any)(one).(string)] = args[2].(func(any) any)(one)
		}
		return object
	case "trim":
		return strings.TrimSpace(args[0].(string))
	case "union":
		if _, ok := args[0].([]any); ok {
			list := []any{}
			for _, one := range args {
				for _, item := range asList(one) {
					if !slices.ContainsFunc(list, func(other any) bool { return reflect.DeepEqual(other, item) }) {
						list = append(list, item)
					}
				}
			}
			return list
		}
		object := map[string]any{}
		for _, one := range args {
			more, ok := one.(map[string]any)
			if !ok {
				panic(wrong("union of %s", kindOf(one)))
			}
			maps.Copy(object, more)
		}
		return object
	}
	panic(wrong("%s is not a function that these templates use", name))
}
