package localhost

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Defaults of host.json.
const (
	defaultRoutePrefix        = "api"
	defaultFunctionTimeout    = 30 * time.Minute
	defaultMaxBatch           = 1000
	defaultMaxConcurrentCalls = 16
)

var (
	functionName = regexp.MustCompile(`^(?i)[a-z][a-z0-9_-]{0,127}$`)
	bindingName  = regexp.MustCompile(`^([a-zA-Z][a-zA-Z0-9]{0,127}|\$return)$`)
	settingName  = regexp.MustCompile(`%([^%\s]+)%`)
)

// errTimer is the error of a timer. The local host does not call what brings the real one down.
var errTimer = errors.New("a timer holds a lease in AzureWebJobsStorage, and the Functions host shuts down when that account " +
	"cannot be reached: let the handler do it from its own start instead")

// appPackage is a staged function app: host.json, the handler's binary and one folder per function.
type appPackage struct {
	dir                string
	executable         string
	arguments          []string
	routePrefix        string
	functionTimeout    time.Duration // 0 means none
	maxBatch           int
	maxConcurrentCalls int
	proxying           bool
	// settings are the app settings: Values of local.settings.json, overlaid by the environment.
	settings  map[string]string
	functions []*function // by name
}

// function is one function of the package. A function with an err is listed and otherwise left out.
type function struct {
	name     string
	trigger  binding
	route    route // of an httpTrigger
	disabled bool
	err      error
}

// active reports whether the function can be called.
func (f *function) active() bool { return f.err == nil && !f.disabled }

// binding is one entry of function.json, with the members of all the types that are known here.
type binding struct {
	Type      string `json:"type"`
	Direction string `json:"direction"`
	Name      string `json:"name"`
	// httpTrigger
	Methods   *[]string `json:"methods"`
	Route     *string   `json:"route"`
	AuthLevel string    `json:"authLevel"`
	// serviceBusTrigger
	QueueName   string `json:"queueName"`
	TopicName   string `json:"topicName"`
	Cardinality string `json:"cardinality"`
	DataType    string `json:"dataType"`
}

type hostFile struct {
	FunctionTimeout string `json:"functionTimeout"`
	Extensions      struct {
		HTTP struct {
			RoutePrefix *string `json:"routePrefix"`
		} `json:"http"`
		ServiceBus struct {
			MaxMessageBatchSize int `json:"maxMessageBatchSize"`
			MaxConcurrentCalls  int `json:"maxConcurrentCalls"`
		} `json:"serviceBus"`
	} `json:"extensions"`
	CustomHandler struct {
		Description struct {
			DefaultExecutablePath string   `json:"defaultExecutablePath"`
			Arguments             []string `json:"arguments"`
		} `json:"description"`
		EnableProxyingHTTPRequest bool `json:"enableProxyingHttpRequest"`
	} `json:"customHandler"`
}

// loadPackage reads the package in dir. An error means that the host cannot start at all; what is wrong with
// one function alone is kept in its err.
func loadPackage(dir string, environ []string) (*appPackage, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("find package: %w", err)
	}
	var file hostFile
	if err := readJSON(filepath.Join(dir, "host.json"), &file); err != nil {
		return nil, fmt.Errorf("read package: %w (is it staged?)", err)
	}
	p := &appPackage{
		dir:                dir,
		routePrefix:        defaultRoutePrefix,
		functionTimeout:    defaultFunctionTimeout,
		maxBatch:           positive(file.Extensions.ServiceBus.MaxMessageBatchSize, defaultMaxBatch),
		maxConcurrentCalls: positive(file.Extensions.ServiceBus.MaxConcurrentCalls, defaultMaxConcurrentCalls),
		arguments:          file.CustomHandler.Description.Arguments,
		proxying:           file.CustomHandler.EnableProxyingHTTPRequest,
	}
	if prefix := file.Extensions.HTTP.RoutePrefix; prefix != nil {
		p.routePrefix = strings.Trim(*prefix, "/")
	}
	if s := file.FunctionTimeout; s == "-1" {
		p.functionTimeout = 0
	} else if s != "" {
		if p.functionTimeout, err = parseTimeSpan(s); err != nil {
			return nil, fmt.Errorf("host.json: functionTimeout: %w", err)
		}
	}
	if p.settings, err = readSettings(dir, environ); err != nil {
		return nil, err
	}
	if p.executable, err = p.findExecutable(file.CustomHandler.Description.DefaultExecutablePath); err != nil {
		return nil, err
	}
	return p, p.readFunctions()
}

// findExecutable returns the path of the handler. The real host stays up without one and lets every request
// hang; saying so at once is kinder.
func (p *appPackage) findExecutable(name string) (string, error) {
	if name == "" {
		return "", errors.New("host.json: customHandler.description.defaultExecutablePath is not set")
	}
	name, err := p.expand(name)
	if err != nil {
		return "", fmt.Errorf("host.json: defaultExecutablePath: %w", err)
	}
	if !filepath.IsAbs(name) {
		name = filepath.Join(p.dir, name)
	}
	info, err := os.Stat(name)
	if err != nil {
		return "", fmt.Errorf("find handler: %w", err)
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("find handler: %s is not a file", name)
	}
	return name, nil
}

// readFunctions reads the function.json of every direct sub-folder.
func (p *appPackage) readFunctions() error {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("read package: %w", err)
	}
	for _, entry := range entries {
		path := filepath.Join(p.dir, entry.Name(), "function.json")
		if _, err := os.Stat(path); err != nil || !entry.IsDir() {
			continue
		}
		f := &function{name: entry.Name()}
		f.disabled = p.isTrue("AzureWebJobs."+f.name+".Disabled") || p.isTrue("AzureWebJobs_"+f.name+"_Disabled")
		var file struct {
			Bindings []binding `json:"bindings"`
		}
		if f.err = readJSON(path, &file); f.err == nil {
			f.err = p.readBindings(f, file.Bindings)
		}
		var bad *routeError
		if errors.As(f.err, &bad) {
			return fmt.Errorf("function %s stops the host, as it would stop the Functions host: %w", f.name, bad)
		}
		p.functions = append(p.functions, f)
	}
	return nil
}

// readBindings fills in f from its bindings and returns what is wrong with them.
func (p *appPackage) readBindings(f *function, bindings []binding) error {
	if !functionName.MatchString(f.name) || strings.EqualFold(f.name, "host") {
		return errors.New("the name is not one that the Functions host accepts")
	}
	var triggers, outputs []binding
	for _, b := range bindings {
		if !bindingName.MatchString(b.Name) {
			return fmt.Errorf("binding name %q is not one that the Functions host accepts", b.Name)
		}
		switch b.Type {
		case "httpTrigger", "timerTrigger", "serviceBusTrigger":
			triggers = append(triggers, b)
		case "http":
			outputs = append(outputs, b)
		default:
			return fmt.Errorf("binding type %q is not known to the local host", b.Type)
		}
	}
	if len(triggers) != 1 {
		return fmt.Errorf("%d triggers, where there must be one", len(triggers))
	}
	f.trigger = triggers[0]
	switch f.trigger.Type {
	case "httpTrigger":
		return p.readHTTPTrigger(f, outputs)
	case "timerTrigger":
		return errTimer
	default:
		return p.readQueueTrigger(f)
	}
}

func (p *appPackage) readHTTPTrigger(f *function, outputs []binding) (err error) {
	template := f.name
	if f.trigger.Route != nil {
		if template, err = p.expand(*f.trigger.Route); err != nil {
			return fmt.Errorf("route: %w", err)
		}
	}
	if f.route, err = parseRoute(p.routePrefix, template); err != nil {
		return err
	}
	if !p.proxying || len(outputs) != 1 {
		return errors.New("the local host passes HTTP on in proxying mode only: it needs " +
			"enableProxyingHttpRequest and no binding but httpTrigger and http")
	}
	return nil
}

func (p *appPackage) readQueueTrigger(f *function) (err error) {
	if f.trigger.TopicName != "" {
		return errors.New("the local host has queues only, no topics")
	}
	if f.trigger.QueueName, err = p.expand(f.trigger.QueueName); err != nil {
		return fmt.Errorf("queueName: %w", err)
	}
	if err := checkQueueName(f.trigger.QueueName); err != nil {
		return err
	}
	switch f.trigger.Cardinality {
	case "":
		f.trigger.Cardinality = "one"
	case "one", "many":
	default:
		return fmt.Errorf("cardinality %q is not one or many", f.trigger.Cardinality)
	}
	switch f.trigger.DataType {
	case "string", "binary":
	case "":
		if f.trigger.Cardinality == "many" {
			return errors.New("cardinality many needs a dataType: without it the Functions host loses JSON objects")
		}
		f.trigger.DataType = "string"
	default:
		return fmt.Errorf("dataType %q is not string or binary", f.trigger.DataType)
	}
	return nil
}

// queues returns the names of the queues that the package receives from and sends to, and of those beside them for what
// can never succeed. Dead letters are part of their queue.
func (p *appPackage) queues() []string {
	var names []string
	add := func(name string) {
		name = strings.TrimSuffix(name, deadLetterSuffix)
		names = append(names, name, name+"-rejected")
	}
	for _, f := range p.functions {
		if f.trigger.Type == "serviceBusTrigger" && f.err == nil {
			add(f.trigger.QueueName)
		}
	}
	if events := p.settings["EVENTS_QUEUE"]; checkQueueName(events) == nil {
		add(events)
	}
	return names
}

// expand replaces each %NAME% with the setting of that name.
func (p *appPackage) expand(s string) (string, error) {
	var missing []string
	s = settingName.ReplaceAllStringFunc(s, func(m string) string {
		value, ok := p.settings[m[1:len(m)-1]]
		if !ok {
			missing = append(missing, m)
		}
		return value
	})
	if len(missing) > 0 {
		return "", fmt.Errorf("no setting for %s", strings.Join(missing, ", "))
	}
	return s, nil
}

func (p *appPackage) isTrue(setting string) bool {
	v, err := strconv.ParseBool(p.settings[setting])
	return err == nil && v
}

// environ returns the settings as an environment, with more laid over them.
func (p *appPackage) environ(more map[string]string) []string {
	all := maps.Clone(p.settings)
	maps.Copy(all, more)
	env := make([]string, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		env = append(env, name+"="+all[name])
	}
	return env
}

// readSettings reads the Values of local.settings.json, if there is one, and lays environ over them.
func readSettings(dir string, environ []string) (map[string]string, error) {
	var file struct {
		Values map[string]string `json:"Values"`
	}
	path := filepath.Join(dir, "local.settings.json")
	if err := readJSON(path, &file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	settings := file.Values
	if settings == nil {
		settings = map[string]string{}
	}
	for _, entry := range environ {
		if name, value, ok := strings.Cut(entry, "="); ok && name != "" {
			settings[name] = value
		}
	}
	return settings, nil
}

func readJSON(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	return nil
}

func positive(n, otherwise int) int {
	if n > 0 {
		return n
	}
	return otherwise
}

var timeSpan = regexp.MustCompile(`^(?:(\d+)\.)?(\d{1,2}):(\d{2}):(\d{2}(?:\.\d{1,7})?)$`)

// parseTimeSpan reads [days.]hh:mm:ss[.fraction].
func parseTimeSpan(s string) (time.Duration, error) {
	m := timeSpan.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("%q is not a time span such as 00:05:00", s)
	}
	days, _ := strconv.Atoi("0" + m[1])
	d, err := time.ParseDuration(m[2] + "h" + m[3] + "m" + m[4] + "s")
	if d += time.Duration(days) * 24 * time.Hour; err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is not a time span above zero", s)
	}
	return d, nil
}
