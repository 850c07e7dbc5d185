package triggers_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"

	"userconnectivity/handler/config"
	"userconnectivity/handler/queue"
)

// root is the top of the repository.
const root = "../.."

// function is one functions/<Name>/function.json.
type function struct {
	name     string
	Bindings []binding `json:"bindings"`
}

type binding struct {
	Type        string   `json:"type"`
	Direction   string   `json:"direction"`
	Name        string   `json:"name"`
	Methods     []string `json:"methods"`
	Route       string   `json:"route"`
	AuthLevel   string   `json:"authLevel"`
	QueueName   string   `json:"queueName"`
	Connection  string   `json:"connection"`
	Cardinality string   `json:"cardinality"`
	DataType    string   `json:"dataType"`
	Schedule    string   `json:"schedule"`
	UseMonitor  *bool    `json:"useMonitor"`
	RunOnStart  *bool    `json:"runOnStartup"`
}

func (f function) trigger() binding { return f.Bindings[0] }

// proxied reports whether the host passes HTTP through: one HTTP trigger in, one HTTP output, nothing else.
// Everything else arrives as an envelope.
func (f function) proxied() bool {
	return len(f.Bindings) == 2 && f.Bindings[0].Type == "httpTrigger" && f.Bindings[0].Direction == "in" &&
		f.Bindings[1].Type == "http" && f.Bindings[1].Direction == "out"
}

// routes are the router's lines that the host calls for the function.
func (f function) routes() []string {
	if !f.proxied() {
		return []string{"POST /" + f.name}
	}
	var lines []string
	for _, m := range f.trigger().Methods {
		lines = append(lines, strings.ToUpper(m)+" /api/"+f.trigger().Route)
	}
	return lines
}

func readFunctions(t *testing.T) []function {
	t.Helper()
	files, err := filepath.Glob(root + "/functions/*/function.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d functions, %v", len(files), err)
	}
	var functions []function
	for _, file := range files {
		f := function{name: filepath.Base(filepath.Dir(file))}
		readJSON(t, file, &f)
		if len(f.Bindings) == 0 {
			t.Fatalf("%s has no bindings", file)
		}
		functions = append(functions, f)
	}
	return functions
}

// readJSON reads a file into v. A name that v does not have fails the test: nothing unknown goes unchecked.
func readJSON(t *testing.T, file string, v any) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

// functionsByRoute names the function behind each proxied route, such as "GET /api/live".
func functionsByRoute(t *testing.T) map[string]string {
	t.Helper()
	names := map[string]string{}
	for _, f := range readFunctions(t) {
		if f.proxied() {
			for _, r := range f.routes() {
				names[r] = f.name
			}
		}
	}
	return names
}

// TestFunctionsAndRoutes ties every function.json to the router, both ways.
func TestFunctionsAndRoutes(t *testing.T) {
	t.Parallel()
	functions := map[string]string{"GET /": "the host's probe", "HEAD /": "the host's probe"}
	for _, f := range readFunctions(t) {
		for _, route := range f.routes() {
			if other, taken := functions[route]; taken {
				t.Errorf("%s and %s share %s", f.name, other, route)
			}
			functions[route] = f.name
		}
	}
	routes := bareRoutes()
	var served []string
	err := chi.Walk(routes, func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
		served = append(served, method+" "+route)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(served)
	if want := slices.Sorted(maps.Keys(functions)); !slices.Equal(served, want) {
		t.Errorf("routes\n%s\nfunctions\n%s", strings.Join(served, "\n"), strings.Join(want, "\n"))
	}
	// A literal and a parameter at the same place must not hide each other.
	for route := range functions {
		method, path, _ := strings.Cut(route, " ")
		match := chi.NewRouteContext()
		example := regexp.MustCompile(`\{\w+\}`).ReplaceAllString(path, "x")
		if !routes.Match(match, method, example) || match.RoutePattern() != path {
			t.Errorf("%s %s is served by %q, want %s", method, example, match.RoutePattern(), path)
		}
	}
}

// TestFunctionNames: a name is part of the setting that switches the function off, which may hold neither hyphen
// nor period on Linux plans; and in the staged package its folder lies beside the binary.
func TestFunctionNames(t *testing.T) {
	t.Parallel()
	pascal := regexp.MustCompile(`^([A-Z][a-z0-9]+)+$`)
	for _, f := range readFunctions(t) {
		if !pascal.MatchString(f.name) {
			t.Errorf("%s is not PascalCase", f.name)
		}
		if slices.Contains([]string{"handler", "host", "host.json"}, strings.ToLower(f.name)) {
			t.Errorf("%s collides with the package's own files", f.name)
		}
		content, err := os.ReadDir(filepath.Join(root, "functions", f.name))
		if err != nil || len(content) != 1 {
			t.Errorf("%s has %d files, want function.json alone; %v", f.name, len(content), err)
		}
	}
}

// TestBindings checks what the decoders rely on.
func TestBindings(t *testing.T) {
	t.Parallel()
	bindingName := regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9]{0,127}$`)
	routeForm := regexp.MustCompile(`^[a-z]+(\.json)?(/([a-z]+|\{[a-z]+\}))*$`)
	settings := exampleSettings(t)
	queues := map[string]bool{}
	for _, f := range readFunctions(t) {
		var inputs int
		for _, b := range f.Bindings {
			if !bindingName.MatchString(b.Name) {
				t.Errorf("%s: binding name %q", f.name, b.Name)
			}
			if strings.HasSuffix(b.Type, "Trigger") {
				inputs++
			}
			if b.Connection != "" && !hasConnection(settings, b.Connection) {
				t.Errorf("%s: connection %s is not in local.settings.json.example", f.name, b.Connection)
			}
			for _, text := range []string{b.QueueName, b.Schedule, b.Route} {
				for _, name := range regexp.MustCompile(`%([^%]+)%`).FindAllStringSubmatch(text, -1) {
					if _, ok := settings[name[1]]; !ok {
						t.Errorf("%s: setting %s is not in local.settings.json.example", f.name, name[1])
					}
				}
			}
		}
		if inputs != 1 || !strings.HasSuffix(f.trigger().Type, "Trigger") {
			t.Errorf("%s has %d triggers, want one, in front", f.name, inputs)
		}
		switch b := f.trigger(); b.Type {
		case "httpTrigger":
			if !f.proxied() || f.Bindings[1].Name != "res" {
				t.Errorf("%s is not one HTTP trigger and one HTTP output called res: the host would send an envelope", f.name)
			}
			if len(b.Methods) == 0 || !routeForm.MatchString(b.Route) {
				t.Errorf("%s: methods %q, route %q", f.name, b.Methods, b.Route)
			}
			if slices.Contains(b.Methods, "get") != slices.Contains(b.Methods, "head") {
				t.Errorf("%s: methods %q: HEAD is taken where GET is, and the host answers 404 to what is not listed", f.name, b.Methods)
			}
		case "serviceBusTrigger":
			if b.Name != "messages" || b.Cardinality != "many" || b.DataType != "string" || b.Connection != "ServiceBusConnection" || len(f.Bindings) != 1 {
				t.Errorf("%s: %+v: the decoder reads a batch of strings from the binding messages", f.name, b)
			}
			queues[b.QueueName] = true
		case "timerTrigger":
			if b.Name != "timer" || b.UseMonitor == nil || *b.UseMonitor || b.RunOnStart == nil || !*b.RunOnStart || len(strings.Fields(b.Schedule)) != 6 {
				t.Errorf("%s: %+v", f.name, b)
			}
		default:
			t.Errorf("%s has the trigger %s, which no decoder reads", f.name, b.Type)
		}
	}
	want := map[string]bool{queue.ConnectivityEvents: true, queue.ConnectivityEvents + "/$deadletterqueue": true, queue.Heartbeats: true}
	if !maps.Equal(queues, want) {
		t.Errorf("queues %v, want %v", queues, want)
	}
}

// hasConnection: a connection is a setting, or the prefix of the settings of an identity.
func hasConnection(settings map[string]string, name string) bool {
	_, ok := settings[name]
	_, identity := settings[name+"__fullyQualifiedNamespace"]
	return ok || identity
}

func exampleSettings(t *testing.T) map[string]string {
	t.Helper()
	var file struct {
		IsEncrypted *bool
		Values      map[string]string
	}
	readJSON(t, root+"/local.settings.json.example", &file)
	if file.IsEncrypted == nil || *file.IsEncrypted {
		t.Error("local.settings.json.example: IsEncrypted must be false")
	}
	return file.Values
}

// TestExampleSettings compares local.settings.json.example with the settings that the handler reads, both ways.
func TestExampleSettings(t *testing.T) {
	t.Parallel()
	example := exampleSettings(t)
	// The host's own: the handler reads none of them.
	for name, value := range map[string]string{
		"FUNCTIONS_WORKER_RUNTIME": "custom", "AzureWebJobsStorage": "UseDevelopmentStorage=true",
	} {
		if example[name] != value {
			t.Errorf("%s is %q, want %q", name, example[name], value)
		}
	}
	host := []string{"FUNCTIONS_WORKER_RUNTIME", "AzureWebJobsStorage"}
	read := map[string]bool{}
	if _, err := config.FromEnv(func(name string) (string, bool) { read[name] = true; return "", false }); err != nil {
		t.Fatal(err)
	}
	for name := range read {
		if _, ok := example[name]; !ok {
			t.Errorf("the handler reads %s, which the example does not have", name)
		}
	}
	for name := range example {
		if !read[name] && !slices.Contains(host, name) {
			t.Errorf("the example has %s, which the handler does not read", name)
		}
	}
	unset, err := config.FromEnv(func(string) (string, bool) { return "", false })
	if err != nil {
		t.Fatal(err)
	}
	copied, err := config.FromEnv(func(name string) (string, bool) { v, ok := example[name]; return v, ok })
	if err != nil {
		t.Fatalf("the example's values are refused: %v", err)
	}
	if copied != unset {
		t.Errorf("the example's values give\n%+v\nno settings give\n%+v", copied, unset)
	}
}

// TestHostSettings checks what the functions need of host.json.
func TestHostSettings(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(root + "/host.json")
	if err != nil {
		t.Fatal(err)
	}
	var host struct {
		Version         string
		FunctionTimeout string
		Extensions      struct {
			HTTP struct {
				RoutePrefix *string
			}
			ServiceBus struct {
				AutoCompleteMessages bool
				PrefetchCount        int
				MaxMessageBatchSize  int
			}
		}
		CustomHandler struct {
			Description struct {
				DefaultExecutablePath string
				Arguments             []string
			}
			EnableForwardingHTTPRequest bool
			EnableProxyingHTTPRequest   bool
		}
	}
	if err := json.Unmarshal(text, &host); err != nil {
		t.Fatal(err)
	}
	if host.Version != "2.0" || host.Extensions.HTTP.RoutePrefix == nil || *host.Extensions.HTTP.RoutePrefix != "api" {
		t.Errorf("version %q, http %+v: the routes begin with /api", host.Version, host.Extensions.HTTP)
	}
	if !host.CustomHandler.EnableForwardingHTTPRequest || !host.CustomHandler.EnableProxyingHTTPRequest {
		t.Error("both flags must be on: proxying wins where the host knows it, forwarding stands in where it does not")
	}
	// The tools that publish set the executable bit of the entry with exactly this name.
	if d := host.CustomHandler.Description; d.DefaultExecutablePath != "handler" || len(d.Arguments) != 0 {
		t.Errorf("executable %q with arguments %q, want handler", d.DefaultExecutablePath, d.Arguments)
	}
	if bus := host.Extensions.ServiceBus; !bus.AutoCompleteMessages || bus.PrefetchCount != 0 || bus.MaxMessageBatchSize < 100 || bus.MaxMessageBatchSize > 200 {
		t.Errorf("service bus: %+v", bus)
	}
}
