package localhost

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func fn(format, arg string) string { return strings.Replace(format, "%q", `"`+arg+`"`, 1) }

func TestFunctionsInError(t *testing.T) {
	t.Parallel()
	tests := map[string]struct{ text, want string }{
		"unknown type":      {`{"bindings":[{"type":"blobTrigger","direction":"in","name":"b"}]}`, "blobTrigger"},
		"two triggers":      {`{"bindings":[{"type":"timerTrigger","name":"a","schedule":"* * * * * *"},{"type":"timerTrigger","name":"b","schedule":"* * * * * *"}]}`, "2 triggers"},
		"no trigger":        {`{"bindings":[]}`, "0 triggers"},
		"timer":             {`{"bindings":[{"type":"timerTrigger","name":"timer","schedule":"0 */5 * * * *"}]}`, "AzureWebJobsStorage"},
		"unset setting":     {queueFunction("%MISSING%", "one", "string"), "%MISSING%"},
		"bad JSON":          {`{`, "parse"},
		"underscore":        {`{"bindings":[{"type":"timerTrigger","name":"a_b","schedule":"* * * * * *"}]}`, "a_b"},
		"many without type": {queueFunction("q", "many", ""), "dataType"},
		"bad cardinality":   {queueFunction("q", "some", "string"), "cardinality"},
		"bad data type":     {queueFunction("q", "one", "stream"), "dataType"},
		"bad queue name":    {queueFunction("q/x", "one", "string"), "queue name"},
		"topic":             {`{"bindings":[{"type":"serviceBusTrigger","name":"m","topicName":"t"}]}`, "topics"},
		"http and more":     {`{"bindings":[{"type":"httpTrigger","name":"req"}]}`, "proxying"},
		"route constraint":  {fn(httpFunction, "a/{id:int}"), "{id:int}"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := testApp{functions: map[string]string{"Bad": test.text, "Good": fn(httpFunction, "good")}}.stage(t)
			p, err := loadPackage(dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			if len(p.functions) != 2 || p.functions[0].err == nil || !strings.Contains(p.functions[0].err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", p.functions[0].err, test.want)
			}
			if !p.functions[1].active() {
				t.Errorf("the other function is left out too: %v", p.functions[1].err)
			}
		})
	}
}

func TestPackagesThatStopTheHost(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		app  testApp
		want string
	}{
		"leading slash":      {testApp{functions: map[string]string{"A": fn(httpFunction, "/a")}}, "slash"},
		"repeated parameter": {testApp{functions: map[string]string{"A": fn(httpFunction, "{a}/{A}")}}, "twice"},
		"no handler":         {testApp{host: map[string]any{"customHandler": map[string]any{}}}, "defaultExecutablePath"},
		"missing handler":    {testApp{host: map[string]any{"customHandler": map[string]any{"description": map[string]any{"defaultExecutablePath": "nowhere"}}}}, "nowhere"},
		"bad timeout":        {testApp{host: map[string]any{"functionTimeout": "5 minutes"}}, "functionTimeout"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := loadPackage(test.app.stage(t), nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want one with %q", err, test.want)
			}
		})
	}
	if _, err := loadPackage(t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "staged") {
		t.Errorf("error %v, want one that asks whether the package is staged", err)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	dir := testApp{functions: map[string]string{
		"Off1": fn(httpFunction, "a"), "Off2": fn(httpFunction, "b"), "On": queueFunction("%QUEUE%", "one", ""),
		"nested/Deep": fn(httpFunction, "deep"),
	}}.stage(t)
	write(t, filepath.Join(dir, "local.settings.json"),
		`{"IsEncrypted":false,"Values":{"AzureWebJobs.Off1.Disabled":"true","QUEUE":"file","ONLY":"file","AzureWebJobs_On_Disabled":"false"}}`)
	p, err := loadPackage(dir, []string{"AzureWebJobs_Off2_Disabled=True", "QUEUE=environment"})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.functions) != 3 || !p.functions[0].disabled || !p.functions[1].disabled || p.functions[2].disabled {
		t.Fatalf("functions %+v", p.functions)
	}
	if got := p.functions[2].trigger.QueueName; got != "environment" {
		t.Errorf("queue %q, want that of the environment", got)
	}
	if p.settings["ONLY"] != "file" || p.functionTimeout != 30*time.Minute || p.maxBatch != 1000 || p.routePrefix != "api" {
		t.Errorf("package %+v", p)
	}
}

func TestExecutableBesideHostJSON(t *testing.T) {
	t.Parallel()
	dir := testApp{host: map[string]any{
		"functionTimeout": "-1",
		"customHandler":   map[string]any{"description": map[string]any{"defaultExecutablePath": "bin/%NAME%"}},
		"extensions":      map[string]any{"http": map[string]any{"routePrefix": ""}, "serviceBus": map[string]any{"maxMessageBatchSize": 7, "maxConcurrentCalls": 3}},
	}}.stage(t)
	write(t, filepath.Join(dir, "bin", "app"), "")
	p, err := loadPackage(dir, []string{"NAME=app"})
	if err != nil {
		t.Fatal(err)
	}
	if p.executable != filepath.Join(dir, "bin", "app") || p.functionTimeout != 0 || p.routePrefix != "" || p.maxBatch != 7 || p.maxConcurrentCalls != 3 {
		t.Errorf("package %+v", p)
	}
}

func TestParseTimeSpan(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"00:05:00": 5 * time.Minute, "1.02:03:04": 26*time.Hour + 3*time.Minute + 4*time.Second, "00:00:00.25": 250 * time.Millisecond,
		"00:00:00": 0, "5m": 0, "": 0,
	} {
		got, err := parseTimeSpan(text)
		if got != want && want != 0 || (err != nil) != (want == 0) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

// TestProjectPackage loads the functions of this repository as they are staged.
func TestProjectPackage(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, "functions"))); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(root, "host.json"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "host.json"), string(data))
	write(t, filepath.Join(dir, "handler"), "")
	p, err := loadPackage(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.functions) == 0 {
		t.Error("no functions")
	}
	for _, f := range p.functions {
		if f.err != nil {
			t.Errorf("%s: %v", f.name, f.err)
		}
	}
}
