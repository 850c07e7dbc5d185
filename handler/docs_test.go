//go:build unix

package main_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"userconnectivity/handler/config"
)

// The documents are part of the product: what they name exists, and what they tell the reader to type works.

// top is the top of the repository.
const top = ".."

func readDoc(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(top, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// documents returns the text of every document by its name from the top.
func documents(t *testing.T) map[string]string {
	t.Helper()
	docs := map[string]string{}
	for _, pattern := range []string{"*.md", "docs/*.md"} {
		files, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(files), err)
		}
		for _, file := range files {
			name, err := filepath.Rel(top, file)
			if err != nil {
				t.Fatal(err)
			}
			docs[filepath.ToSlash(name)] = readDoc(t, name)
		}
	}
	return docs
}

// section returns the part of the README under a heading.
func section(t *testing.T, heading string) string {
	t.Helper()
	_, text, found := strings.Cut(readDoc(t, "README.md"), "\n## "+heading+"\n")
	if !found {
		t.Fatalf("the README has no section %q", heading)
	}
	text, _, _ = strings.Cut(text, "\n## ")
	return text
}

// table returns the cells of a section's table, without its two head lines.
func table(t *testing.T, heading string) [][]string {
	t.Helper()
	var rows [][]string
	for line := range strings.Lines(section(t, heading)) {
		if cells := strings.Split(strings.TrimSpace(line), " | "); strings.HasPrefix(line, "| ") {
			cells[0], cells[len(cells)-1] = strings.TrimPrefix(cells[0], "| "), strings.TrimSuffix(cells[len(cells)-1], " |")
			rows = append(rows, cells)
		}
	}
	if len(rows) < 3 {
		t.Fatalf("section %q has a table of %d lines", heading, len(rows))
	}
	return rows[2:]
}

// code returns what a cell has between backticks, and false when it is not just that.
func code(cell string) (string, bool) {
	text, ok := strings.CutPrefix(cell, "`")
	text, end := strings.CutSuffix(text, "`")
	return text, ok && end && !strings.Contains(text, "`")
}

// hostSettings are read by the Functions host alone.
var hostSettings = []string{"FUNCTIONS_WORKER_RUNTIME", "AzureWebJobsStorage"}

// TestSettingsTable compares the README's settings with those that the handler reads, names and defaults.
func TestSettingsTable(t *testing.T) {
	t.Parallel()
	read := map[string]bool{}
	usual := settings(t, func(name string) string { read[name] = true; return "" })
	for _, name := range hostSettings {
		read[name] = true
	}
	listed := map[string]bool{}
	for _, row := range table(t, "Settings") {
		name, ok := code(row[0])
		if !ok || len(row) != 3 || listed[name] {
			t.Errorf("not a row of one new setting: %q", row)
			continue
		}
		listed[name] = true
		if slices.Contains(hostSettings, name) {
			continue
		}
		if value, ok := code(row[1]); ok {
			if got := settings(t, only(name, value)); got != usual {
				t.Errorf("%s: the default is not %s", name, value)
			}
			continue
		}
		switch row[1] {
		case "none":
			if value := whenUnset(t, name); !value.IsZero() {
				t.Errorf("%s: the README says that there is no default, but it is %q", name, value)
			}
		case "the machine's name":
			host, err := os.Hostname()
			if err != nil {
				t.Fatal(err)
			}
			if got := whenUnset(t, name); got.String() != host {
				t.Errorf("%s: the default is %q, not the machine's name", name, got)
			}
		default:
			t.Errorf("%s: the default must be in backticks or none, not %q", name, row[1])
		}
	}
	if !maps.Equal(listed, read) {
		t.Errorf("the README has\n%s\nthe handler reads\n%s", sorted(listed), sorted(read))
	}
	var example struct{ Values map[string]string }
	if err := json.Unmarshal([]byte(readDoc(t, "local.settings.json.example")), &example); err != nil {
		t.Fatal(err)
	}
	for name := range listed {
		if _, ok := example.Values[name]; !ok {
			t.Errorf("local.settings.json.example does not have %s", name)
		}
	}
}

func settings(t *testing.T, value func(name string) string) config.Config {
	t.Helper()
	c, problems := config.FromEnv(func(name string) (string, bool) { return value(name), true })
	if problems != nil {
		t.Fatal(problems)
	}
	return c
}

// only returns a lookup that knows one setting.
func only(name, value string) func(string) string {
	return func(asked string) string {
		if asked == name {
			return value
		}
		return ""
	}
}

// whenUnset returns what a setting is when it is unset. It finds the setting's field by giving it a value; one that
// takes none of these, such as a number, must have its default in the README.
func whenUnset(t *testing.T, name string) reflect.Value {
	t.Helper()
	before := reflect.ValueOf(settings(t, only("", "")))
	values := []string{"other", "b3RoZXI="}
	if _, problems := config.FromEnv(func(asked string) (string, bool) { return only(name, "<other>")(asked), true }); len(problems) > 0 {
		values = append(values, problems[0].Example)
	}
	for _, other := range values {
		changed, problems := config.FromEnv(func(asked string) (string, bool) { return only(name, other)(asked), true })
		if problems != nil {
			continue // not of this kind
		}
		for i, after := 0, reflect.ValueOf(changed); i < before.NumField(); i++ {
			if !before.Field(i).Equal(after.Field(i)) {
				return before.Field(i)
			}
		}
	}
	t.Fatalf("%s: its default must be given", name)
	return reflect.Value{}
}

func sorted[V any](m map[string]V) string {
	return strings.Join(slices.Sorted(maps.Keys(m)), "\n")
}

// routes returns the calls over HTTP, such as "GET /api/live", from functions/*/function.json.
func routes(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(top, "functions/*/function.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d functions, %v", len(files), err)
	}
	calls := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var function struct {
			Bindings []struct {
				Type    string
				Route   string
				Methods []string
			}
		}
		if err := json.Unmarshal(text, &function); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, b := range function.Bindings {
			for _, method := range b.Methods {
				if method == "head" {
					continue // it is where GET is; the README says so once
				}
				calls[strings.ToUpper(method)+" /api/"+b.Route] = true
			}
		}
	}
	return calls
}

func TestRoutesTable(t *testing.T) {
	t.Parallel()
	listed := map[string]bool{}
	for _, row := range table(t, "HTTP API") {
		call, _ := code(row[0])
		listed[call] = true
	}
	if have := routes(t); !maps.Equal(listed, have) {
		t.Errorf("the README has\n%s\nthe functions are\n%s", sorted(listed), sorted(have))
	}
}

// TestRoutesInDocuments: every call that a document names is one of the app.
func TestRoutesInDocuments(t *testing.T) {
	t.Parallel()
	parameter := regexp.MustCompile(`\\\{[a-z]+\\\}`)
	have := map[string]*regexp.Regexp{}
	for call := range routes(t) {
		have[call] = regexp.MustCompile("^" + parameter.ReplaceAllString(regexp.QuoteMeta(call), "[^/]+") + "$")
	}
	known := func(call string) bool {
		for _, route := range have {
			if route.MatchString(call) {
				return true
			}
		}
		return false
	}
	named := regexp.MustCompile(`\b(GET|POST|PUT|PATCH|DELETE) (/api/[^\s` + "`" + `?,;)]+)`)
	url := regexp.MustCompile(`https?://[^\s/"']+(/api/[^\s"'?` + "`" + `]+)`)
	found := 0
	for name, text := range documents(t) {
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			if found++; !known(m[1] + " " + m[2]) {
				t.Errorf("%s says %s, which is no call of the app", name, m[0])
			}
		}
		for line := range strings.Lines(text) {
			for _, m := range url.FindAllStringSubmatch(line, -1) {
				method := "GET"
				if strings.Contains(line, " -d ") || strings.Contains(line, "-X POST") {
					method = "POST"
				}
				if found++; !known(method + " " + m[1]) {
					t.Errorf("%s says %s %s, which is no call of the app", name, method, m[1])
				}
			}
		}
	}
	if found < 20 {
		t.Errorf("only %d calls were found", found)
	}
}

// TestCommandsTable compares the README's commands with the Makefile, and finds those that other documents name.
func TestCommandsTable(t *testing.T) {
	t.Parallel()
	targets := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z-]*):`).FindAllStringSubmatch(readDoc(t, "Makefile"), -1) {
		targets[m[1]] = true
	}
	listed := map[string]bool{}
	for _, row := range table(t, "Commands") {
		command, _ := code(row[0])
		listed[strings.TrimPrefix(command, "make ")] = true
	}
	if !maps.Equal(listed, targets) {
		t.Errorf("the README has\n%s\nthe Makefile has\n%s", sorted(listed), sorted(targets))
	}
	for name, text := range documents(t) {
		for _, m := range regexp.MustCompile("(?m)(?:^ *|`)make ([a-z -]+)").FindAllStringSubmatch(text, -1) {
			for target := range strings.FieldsSeq(m[1]) {
				if !targets[target] {
					t.Errorf("%s says %q, but there is no target %s", name, m[0], target)
				}
			}
		}
	}
}

// TestPathsInDocuments: every file and folder that a document names exists, and every link leads somewhere.
func TestPathsInDocuments(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir(top)
	if err != nil {
		t.Fatal(err)
	}
	var first []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != ".git" {
			first = append(first, regexp.QuoteMeta(e.Name()))
		}
	}
	path := regexp.MustCompile(`(?:^|[\s` + "`" + `('"=])((?:\./)?(?:` + strings.Join(first, "|") + `)/[A-Za-z0-9_./*-]*)`)
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	built := regexp.MustCompile(`^(dist|bin|\.data)(/|$)`)
	docs := documents(t)
	found := 0
	for name, text := range docs {
		for _, m := range path.FindAllStringSubmatch(text, -1) {
			file := strings.TrimRight(m[1], ".,")
			// These are made by commands; the last is the reader's own.
			if built.MatchString(file) || file == "infra/presence.bicepparam" {
				continue
			}
			if match, err := filepath.Glob(filepath.Join(top, file)); err != nil || len(match) == 0 {
				t.Errorf("%s names %s, which is not there", name, file)
			}
			found++
		}
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			found++
			file, anchor, _ := strings.Cut(m[1], "#")
			target := name
			if file != "" {
				target = filepath.Join(filepath.Dir(name), file)
			}
			if _, err := os.Stat(filepath.Join(top, target)); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
			}
			if anchor != "" && !slices.Contains(anchors(docs[filepath.ToSlash(target)]), anchor) {
				t.Errorf("%s links to %s, and there is no such heading", name, m[1])
			}
		}
	}
	if found < 50 {
		t.Errorf("only %d paths and links were found", found)
	}
}

// anchors returns the names of a document's headings, as links have them.
func anchors(text string) []string {
	var names []string
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		names = append(names, strings.ReplaceAll(name, " ", "-"))
	}
	return names
}

// TestLayout: the README lists every package, and its path of a heartbeat is that of package presence.
func TestLayout(t *testing.T) {
	t.Parallel()
	text := section(t, "How the code is laid out")
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !regexp.MustCompile(`(?m)^  (\w+/, )*`+e.Name()+`/`).MatchString(text) {
			t.Errorf("the README's layout does not have handler/%s", e.Name())
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^  (\S+/(?:, \S+/)*)  ? *\S`).FindAllStringSubmatch(text, -1) {
		for dir := range strings.SplitSeq(m[1], ", ") {
			if _, err := os.Stat(dir); err != nil {
				t.Errorf("the README's layout: %v", err)
			}
		}
	}
	steps := regexp.MustCompile(`(?m)^//\t((?:\w+/)+\S+?\.\w+(?:, \S+)?  +.*)$`).FindAllStringSubmatch(readDoc(t, "handler/presence/doc.go"), -1)
	if len(steps) < 10 {
		t.Fatalf("only %d steps of the path were found", len(steps))
	}
	for _, step := range steps {
		if !strings.Contains(text, "\n"+step[1]+"\n") {
			t.Errorf("the README's path does not have the line\n%s", step[1])
		}
		files, _, _ := strings.Cut(step[1], "  ")
		folder := ""
		for file := range strings.SplitSeq(files, ", ") {
			if strings.HasPrefix(file, "functions/") {
				folder = top
			}
			if _, err := os.Stat(filepath.Join(folder, file)); err != nil {
				t.Errorf("the path of a heartbeat: %v", err)
			}
			folder = filepath.Dir(file) // a second file is named from the first one's
		}
	}
}

// documentTimeout bounds the build, the start and the commands together.
const documentTimeout = 8 * time.Minute

// TestCommandsOfTheReadme types what the README's reader types: make run, then every curl line in order. Each
// answer must be the one that the README shows.
func TestCommandsOfTheReadme(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), documentTimeout)
	defer cancel()
	blocks := regexp.MustCompile("(?ms)^```(sh|json)\n(.*?)^```").FindAllStringSubmatch(readDoc(t, "README.md"), -1)
	const address = "http://127.0.0.1:7071" // as the README has it
	base := startByMake(ctx, t)
	asked := 0
	for i, block := range blocks {
		if block[1] != "sh" || !strings.Contains(block[2], "curl ") {
			continue
		}
		var want string
		if i+1 < len(blocks) && blocks[i+1][1] == "json" {
			want = blocks[i+1][2]
		}
		for line := range strings.Lines(block[2]) {
			command := strings.TrimSpace(line)
			if !strings.HasPrefix(command, "curl ") {
				if err := exec.CommandContext(ctx, "sh", "-c", command).Run(); err != nil {
					t.Errorf("%s: %v", command, err)
				}
				continue
			}
			if !strings.Contains(command, address) {
				t.Errorf("%s does not ask %s", command, address)
			}
			answer := ask(ctx, t, strings.ReplaceAll(command, address, base), want)
			t.Logf("%s\n%s", command, answer)
			asked++
		}
	}
	if asked < 4 {
		t.Errorf("only %d curl lines were found", asked)
	}
}

// ask runs a curl line. A line that only reads is repeated until its answer is the wanted one.
func ask(ctx context.Context, t *testing.T, command, want string) string {
	t.Helper()
	reads := !strings.Contains(command, " -d ")
	for {
		out, err := exec.CommandContext(ctx, "sh", "-c", command+` --write-out '\n%{http_code}'`).CombinedOutput()
		text := strings.TrimSpace(string(out))
		end := strings.LastIndexByte(text, '\n')
		answer, status := text[:max(end, 0)], text[end+1:]
		if err == nil && strings.HasPrefix(status, "2") && alike(answer, want) {
			return answer
		}
		if !reads || ctx.Err() != nil {
			t.Fatalf("%s\nanswered (%v)\n%s\nwant\n%s", command, err, text, want)
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

var (
	anyTime   = regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z`)
	anyNumber = regexp.MustCompile(`:\d+`)
	blanks    = regexp.MustCompile(`\s+`)
)

// alike reports whether an answer is the one that a document shows, where times and numbers may be others and
// "..." stands for anything.
func alike(answer, shown string) bool {
	plain := func(s string) string {
		s = blanks.ReplaceAllString(s, "")
		return anyNumber.ReplaceAllString(anyTime.ReplaceAllString(s, "TIME"), ":N")
	}
	if shown == "" {
		return true
	}
	parts := strings.Split(plain(shown), "...")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile("^" + strings.Join(parts, ".*") + "$").MatchString(plain(answer))
}

// startByMake runs make run on a free port, with folders of its own, and returns the URL that it prints. In the
// end it is stopped as Ctrl-C in a terminal does.
func startByMake(ctx context.Context, t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("make", "-C", top, "run", "PORT=0", "DATA_DIR="+dir+"/data", "DIST="+dir+"/dist", "BIN="+dir+"/bin")
	cmd.Env = slices.DeleteFunc(os.Environ(), func(entry string) bool {
		return strings.HasPrefix(entry, "MAKE") || strings.HasPrefix(entry, "MFLAGS") || strings.HasPrefix(entry, "REDIS_")
	})
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer write.Close()
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	output, url := make(chan string, 1), make(chan string, 1)
	go func() {
		defer read.Close()
		output <- watch(read, url)
	}()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGINT)
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
			t.Error("make run did not stop at an interrupt")
		}
		if text := <-output; t.Failed() {
			t.Logf("make run printed:\n%s", text)
		}
	})
	select {
	case base := <-url:
		return base
	case <-ended:
		t.Fatal("make run ended by itself")
	case <-ctx.Done():
		t.Fatal("make run did not come up")
	}
	return ""
}

// watch reads to the end, and sends the URL of the line to try as soon as that has come.
func watch(r io.Reader, url chan<- string) string {
	var all strings.Builder
	try := regexp.MustCompile(`^ *curl .*(http://127\.0\.0\.1:\d+)/api/heartbeat`)
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		fmt.Fprintln(&all, lines.Text())
		if m := try.FindStringSubmatch(lines.Text()); m != nil {
			url <- m[1]
		}
	}
	return all.String()
}

// TestWhatAChangeTouches: the files that CONTRIBUTING.md names for a change are there and have the one to follow, no
// other file has a JSON name of its own for it, and the lists stay short.
func TestWhatAChangeTouches(t *testing.T) {
	t.Parallel()
	_, text, _ := strings.Cut(readDoc(t, "CONTRIBUTING.md"), "\n## What a change touches\n")
	text, _, _ = strings.Cut(text, "\n## ")
	rows := regexp.MustCompile("(?m)^\\| (an? [^|]+) \\| ([^|]+) \\| `([^`]+)` \\|$").FindAllStringSubmatch(text, -1)
	if len(rows) != 5 {
		t.Fatalf("%d kinds of changes, want 5", len(rows))
	}
	plain := func(s string) string { return strings.ToLower(strings.ReplaceAll(s, "_", "")) }
	for _, row := range rows {
		what, follow := row[1], row[3]
		named := map[string]bool{}
		for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[2], -1) {
			path := "handler/" + m[1]
			if rest, ok := strings.CutPrefix(m[1], "/"); ok {
				path = rest
			}
			named[path] = true
			if !strings.Contains(plain(readDoc(t, path)), plain(follow)) {
				t.Errorf("%s: %s does not have %s", what, path, follow)
			}
		}
		if len(named) < 3 || len(named) > 10 {
			t.Errorf("%s touches %d files", what, len(named))
		}
		for _, path := range core(t) {
			if !named[path] && strings.Contains(readDoc(t, path), `json:"`+follow) {
				t.Errorf("%s: %s has a JSON name for it, too, and is not in the list", what, path)
			}
		}
	}
}

// core returns the Go files on the way of a heartbeat and of an event, without tests.
func core(t *testing.T) (paths []string) {
	t.Helper()
	for _, dir := range []string{"triggers", "presence", "redisstore", "expiry", "queue", "eventlog", "cosmosstore", "sqlitestore", "worker", "deferral"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatalf("no files in %s: %v", dir, err)
		}
		for _, f := range files {
			if !strings.HasSuffix(f, "_test.go") {
				paths = append(paths, "handler/"+f)
			}
		}
	}
	return paths
}
