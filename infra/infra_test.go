// Package infra_test holds the templates, host.json, the functions, the settings of the README, the scripts and the
// documentation together. What it cannot do is ask Azure, or the Bicep compiler.
package infra_test

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
)

// ---- the templates by themselves -------------------------------------------------------------------------------

func TestRolesAreTheOnesThatTheirNamesSay(t *testing.T) {
	t.Parallel()
	roles := map[string]string{
		"serviceBusDataReceiver":      "4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0",
		"serviceBusDataOwner":         "090c5cfd-751d-490a-894a-3ce6f1109419",
		"serviceBusDataSender":        "69a216fc-b8fb-44d8-bc22-1f3c2cd27a39",
		"storageBlobDataOwner":        "b7e6dc6d-f1e8-4753-8033-0f276bb0955b",
		"storageBlobDataContributor":  "ba92f5b4-2d11-453d-a403-e96b0029c9fe",
		"storageTableDataContributor": "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3",
		"monitoringMetricsPublisher":  "3913510d-42f4-4e42-8a64-420c390055eb",
		"dataContributor":             "00000000-0000-0000-0000-000000000002", // Cosmos DB, data plane
	}
	found := map[string]bool{}
	for path, b := range templates(t) {
		for _, d := range b.declarations {
			for _, one := range d.tokens {
				if one.kind != "text" || !guid.MatchString(one.text) {
					continue
				}
				if want := roles[d.name]; d.kind != "var" || one.text != want {
					t.Errorf("%s: %s %s is %s, want %q", path, d.kind, d.name, one.text, want)
				}
				found[d.name] = true
			}
		}
	}
	for name := range roles {
		if !found[name] {
			t.Errorf("the role %s is granted nowhere", name)
		}
	}
}

func TestNoOutputHoldsASecret(t *testing.T) {
	t.Parallel()
	suspicious := regexp.MustCompile(`(?i)key|secret|password|connection_?string|token|packageurl`)
	for path, b := range templates(t) {
		byName := map[string]declaration{}
		for _, d := range b.declarations {
			if d.kind != "output" {
				byName[d.name] = d
			}
		}
		// secret reports what is secret among the names that tokens reach through variables.
		var secret func(list []token) string
		secret = func(list []token) string {
			for _, one := range list {
				if one.text == "listKeys" || one.text == "ConnectionString" {
					return one.text
				}
			}
			names, _ := uses(list, map[string]bool{})
			for _, name := range names {
				d := byName[name]
				if _, ok := d.decorators["secure"]; ok {
					return name
				}
				if d.kind == "var" {
					if found := secret(d.tokens); found != "" {
						return found
					}
				}
			}
			return ""
		}
		for _, o := range b.all("output") {
			if found := secret(o.tokens); found != "" {
				t.Errorf("%s: output %s holds %s", path, o.name, found)
			}
			if suspicious.MatchString(o.name) {
				t.Errorf("%s: output %s sounds like a secret", path, o.name)
			}
		}
		for _, p := range b.all("param") {
			_, secure := p.decorators["secure"]
			if !secure && p.is == "string" && suspicious.MatchString(p.name) {
				t.Errorf("%s: param %s sounds like a secret and is not secure", path, p.name)
			}
		}
	}
}

func TestKeysAreOffAndDoorsAreShut(t *testing.T) {
	t.Parallel()
	all := templates(t)
	for _, test := range []struct {
		file, resource string
		want           any
		path           []string
	}{
		{"modules/servicebus.bicep", "namespace", true, []string{"properties", "disableLocalAuth"}},
		{"modules/servicebus.bicep", "namespace", "1.2", []string{"properties", "minimumTlsVersion"}},
		{"modules/cosmos.bicep", "account", true, []string{"properties", "disableLocalAuth"}},
		{"modules/cosmos.bicep", "account", "Tls12", []string{"properties", "minimalTlsVersion"}},
		{"modules/monitoring.bicep", "insights", true, []string{"properties", "DisableLocalAuth"}},
		{"modules/monitoring.bicep", "workspace", true, []string{"properties", "features", "disableLocalAuth"}},
		{"modules/redis.bicep", "cluster", "1.2", []string{"properties", "minimumTlsVersion"}},
		{"modules/redis.bicep", "database", "Disabled", []string{"properties", "accessKeysAuthentication"}},
		{"modules/redis.bicep", "database", "Encrypted", []string{"properties", "clientProtocol"}},
		{"modules/storage.bicep", "account", false, []string{"properties", "allowBlobPublicAccess"}},
		{"modules/storage.bicep", "packages", "None", []string{"properties", "publicAccess"}},
		{"modules/functionapp.bicep", "ftp", false, []string{"properties", "allow"}},
		{"modules/functionapp.bicep", "scm", false, []string{"properties", "allow"}},
	} {
		if got := at(t, all[test.file].value(t, "resource", test.resource), test.path...); got != test.want {
			t.Errorf("%s: %s.%s is %v, want %v", test.file, test.resource, strings.Join(test.path, "."), got, test.want)
		}
	}
	sharedKeys := at(t, all["modules/storage.bicep"].value(t, "resource", "account"), "properties", "allowSharedKeyAccess")
	if e, ok := sharedKeys.(expression); !ok || say(e) != "sharedKeys" {
		t.Errorf("allowSharedKeyAccess is %v, want the parameter sharedKeys", sharedKeys)
	}
	if got := all["main.bicep"].value(t, "param", "storageAuth"); got != "identity" {
		t.Errorf("storageAuth is %v by default", got)
	}
}

func TestRedisIsFitForTheListener(t *testing.T) {
	t.Parallel()
	database := read(t, "modules/redis.bicep").value(t, "resource", "database")
	if got := at(t, database, "properties", "clusteringPolicy"); got != "NoCluster" {
		t.Errorf("clusteringPolicy is %v: a subscriber would see the events of one shard", got)
	}
	if got := at(t, database, "properties", "evictionPolicy"); got != "NoEviction" {
		t.Errorf("evictionPolicy is %v: sessions would be dropped when memory is full", got)
	}
	events := at(t, database, "properties", "notifyKeyspaceEvents").(string)
	if !strings.Contains(events, "E") || !strings.Contains(events, "x") {
		t.Errorf("notifyKeyspaceEvents is %q: expired events need E and x", events)
	}
}

// ---- the connection budget ---------------------------------------------------------------------------------------

// connectionLimits are those of the service, by size.
var connectionLimits = map[string]any{
	"Balanced_B0": 15000, "Balanced_B1": 15000, "Balanced_B3": 15000, "Balanced_B5": 15000, "Balanced_B10": 30000, "Balanced_B20": 75000,
	"MemoryOptimized_M10": 15000, "MemoryOptimized_M20": 30000,
	"ComputeOptimized_X3": 30000, "ComputeOptimized_X5": 30000, "ComputeOptimized_X10": 75000, "ComputeOptimized_X20": 150000,
}

func TestConnectionBudget(t *testing.T) {
	t.Parallel()
	main := read(t, "main.bicep")
	limits := main.value(t, "var", "redisConnectionLimits").(map[string]any)
	if !maps.Equal(limits, connectionLimits) {
		t.Errorf("the limits are %v, want %v", limits, connectionLimits)
	}
	sizes := texts(t, main.find(t, "param", "redisSku").decorators["allowed"])
	if got, want := slices.Sorted(slices.Values(sizes)), slices.Sorted(maps.Keys(limits)); !slices.Equal(got, want) {
		t.Errorf("sizes are %v, limits are known for %v", got, want)
	}
	for name, want := range map[string]string{
		"maxInstances":     "apiMaxInstances + listenerInstances",
		"redisConnections": "redisConnectionsPerProcess * maxInstances",
		"redisMaxClients":  "empty ( existingRedisHost ) ? redisConnectionLimits [ redisSku ] : existingRedisMaxClients",
	} {
		if got := say(main.find(t, "var", name).tokens); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	guard := say(main.find(t, "var", "suffix").tokens)
	if !strings.HasPrefix(guard, "empty ( refusals ) ? take (") || !strings.Contains(guard, ": fail (") {
		t.Errorf("suffix does not hold the checks: %s", guard)
	}
	// Whatever is created has a name, and every name needs the suffix.
	for _, d := range slices.Concat(main.all("resource"), main.all("module")) {
		if d.name == "alerts" || d.name == "api" || d.name == "listener" || d.name == "storage" {
			continue // named after apiName, listenerName and storageName; alerts after what they watch
		}
		if !slices.ContainsFunc(d.tokens, func(one token) bool { return one.text == "suffix" }) {
			t.Errorf("the name of %s does not need the suffix, so it would be created without the check", d.name)
		}
	}
	for _, name := range []string{"apiName", "listenerName", "storageName"} {
		if names, _ := uses(main.find(t, "var", name).tokens, map[string]bool{}); !slices.Contains(names, "suffix") {
			t.Errorf("%s does not need the suffix", name)
		}
	}

	perProcess := main.value(t, "var", "redisConnectionsPerProcess").(int)
	for _, file := range []string{"small.bicepparam", "large.bicepparam"} {
		params := read(t, file)
		instances := params.value(t, "param", "apiMaxInstances").(int) + params.value(t, "param", "listenerInstances").(int)
		limit := limits[params.value(t, "param", "redisSku").(string)].(int)
		// Twice, because old and new processes run side by side while a package is published.
		if need := 2 * perProcess * instances; need > limit {
			t.Errorf("%s: %d instances need %d connections while publishing, the limit is %d", file, instances, need, limit)
		}
	}
}

// ---- the set-ups ---------------------------------------------------------------------------------------------------

func TestParameterFilesFitTheTemplate(t *testing.T) {
	t.Parallel()
	main := read(t, "main.bicep")
	script, err := os.ReadFile("publish/provision.sh")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"small.bicepparam", "large.bicepparam", "main.bicepparam"} {
		params := read(t, file)
		if params.using != "./main.bicep" {
			t.Errorf("%s uses %q", file, params.using)
		}
		given := map[string]bool{}
		for _, d := range params.declarations {
			given[d.name] = true
			p := main.find(t, "param", d.name)
			if allowed, ok := p.decorators["allowed"].([]any); ok {
				if _, isExpression := d.value.(expression); !isExpression && !slices.Contains(allowed, d.value) {
					t.Errorf("%s: %s is %v, want one of %v", file, d.name, d.value, allowed)
				}
			}
			if n, ok := d.value.(int); ok {
				if least, ok := p.decorators["minValue"].(int); ok && n < least {
					t.Errorf("%s: %s is %d, below %d", file, d.name, n, least)
				}
				if most, ok := p.decorators["maxValue"].(int); ok && n > most {
					t.Errorf("%s: %s is %d, above %d", file, d.name, n, most)
				}
			}
		}
		for _, p := range main.all("param") {
			if p.value == nil && !given[p.name] {
				t.Errorf("%s gives no %s", file, p.name)
			}
		}
		// The URLs come from the environment and have no default: a deployment that forgets them is refused.
		for param, variable := range map[string]string{
			"apiPackageUrl": "API_PACKAGE_URL", "apiPreviousPackageUrl": "API_PREVIOUS_PACKAGE_URL",
			"listenerPackageUrl": "LISTENER_PACKAGE_URL", "listenerPreviousPackageUrl": "LISTENER_PREVIOUS_PACKAGE_URL",
		} {
			if got, want := say(params.find(t, "param", param).tokens), "readEnvironmentVariable ( '"+variable+"' )"; got != want {
				t.Errorf("%s: %s is %s, want %s", file, param, got, want)
			}
			if !strings.Contains(string(script), variable+"=") {
				t.Errorf("provision.sh does not set %s", variable)
			}
			if main.find(t, "param", param).value != nil {
				t.Errorf("main.bicep: %s has a default: a deployment that forgets it would remove the code", param)
			}
		}
	}
}

func TestTheListenerIsAlwaysOn(t *testing.T) {
	t.Parallel()
	main := read(t, "main.bicep")
	for _, name := range []string{"minInstances", "maxInstances"} {
		if e, ok := at(t, main.value(t, "module", "listener"), "params", name).(expression); !ok || say(e) != "listenerInstances" {
			t.Errorf("%s of the listener is %v, want listenerInstances", name, e)
		}
	}
	for file, want := range map[string]map[string]any{
		"small.bicepparam": {"listenerInstances": 1, "listenerOwnPlan": false, "planSku": "EP1", "serviceBusSku": "Standard", "cosmosThroughput": "serverless"},
		"large.bicepparam": {"listenerInstances": 2, "listenerOwnPlan": true, "planSku": "EP1", "serviceBusSku": "Premium", "cosmosThroughput": "autoscale"},
	} {
		params := read(t, file)
		for name, value := range want {
			if got := params.value(t, "param", name); got != value {
				t.Errorf("%s: %s is %v, want %v", file, name, got, value)
			}
		}
		if params.value(t, "param", "zoneRedundant") == true && params.value(t, "param", "apiMinInstances").(int) < 2 {
			t.Errorf("%s: zones need two instances", file)
		}
	}
}

func TestHostIdsAreShortAndDistinct(t *testing.T) {
	t.Parallel()
	main := read(t, "main.bicep")
	longest := main.find(t, "param", "namePrefix").decorators["maxLength"].(int)
	seen := map[string]bool{}
	for _, name := range []string{"apiName", "listenerName"} {
		text := say(main.find(t, "var", name).tokens)
		m := regexp.MustCompile(`^'' \( prefix \) '(-[a-z]+-)' \( suffix \) ''$`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("%s is %s", name, text)
		}
		// The host id is the name; the platform takes 32 characters at most.
		if n := longest + len(m[1]) + 6; n > 32 {
			t.Errorf("%s may have %d characters", name, n)
		}
		if seen[m[1]] {
			t.Errorf("two apps have names with %s", m[1])
		}
		seen[m[1]] = true
	}
	id := at(t, read(t, "modules/functionapp.bicep").value(t, "var", "hostSettings"), "AzureFunctionsWebHost__hostid")
	if e, ok := id.(expression); !ok || say(e) != "name" {
		t.Errorf("the host id is %v, want the name of the app", id)
	}
}

// ---- the templates and the functions -----------------------------------------------------------------------------

// trigger is the first binding of a function.
type trigger struct {
	Type, Name, QueueName, Connection, Cardinality, DataType, Route, AuthLevel string
	Methods                                                                    []string
}

// functions reads the triggers of all functions.
func functions(t *testing.T) map[string]trigger {
	t.Helper()
	paths, err := filepath.Glob("../functions/*/function.json")
	if err != nil || len(paths) == 0 {
		t.Fatalf("there are no functions (%v)", err)
	}
	all := map[string]trigger{}
	for _, path := range paths {
		var file struct{ Bindings []trigger }
		readJSON(t, path, &file)
		if len(file.Bindings) == 0 {
			t.Fatalf("%s has no binding", path)
		}
		all[filepath.Base(filepath.Dir(path))] = file.Bindings[0]
	}
	return all
}

func readJSON(t *testing.T, path string, v any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func TestEachFunctionRunsInTheRightApp(t *testing.T) {
	t.Parallel()
	main := read(t, "main.bicep")
	api := texts(t, main.value(t, "var", "apiFunctions"))
	listener := texts(t, main.value(t, "var", "listenerFunctions"))
	both := []string{"Health", "Live", "Metrics"}
	named := slices.Sorted(slices.Values(slices.Concat(api, listener, both)))
	if want := slices.Sorted(maps.Keys(functions(t))); !slices.Equal(named, want) {
		t.Errorf("the templates know %v\nthe folders are %v", named, want)
	}
	if !slices.Equal(listener, []string{"ExpirationListener"}) {
		t.Errorf("the listener app runs %v", listener)
	}
	pascal := regexp.MustCompile(`^[A-Z][A-Za-z0-9]*$`) // a hyphen cannot be part of an app setting on Linux
	for _, name := range named {
		if !pascal.MatchString(name) {
			t.Errorf("the function %s cannot be disabled on Linux", name)
		}
	}
	// Each app disables what belongs to the other.
	for name, of := range map[string]string{"apiDisabled": "listenerFunctions", "listenerDisabled": "apiFunctions"} {
		want := "toObject ( " + of + " , name => 'AzureWebJobs_' ( name ) '_Disabled' , name => 'true' )"
		if got := say(main.find(t, "var", name).tokens); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for module, disabled := range map[string]string{"api": "apiDisabled", "listener": "listenerDisabled"} {
		e, _ := at(t, main.value(t, "module", module), "params", "settings").(expression)
		if want := "union ( commonSettings , redisKeySetting , routesSetting , scalingSetting , " + disabled + " )"; say(e) != want {
			t.Errorf("the settings of %s are %s, want %s", module, say(e), want)
		}
	}
}

func TestQueuesAreThoseOfTheFunctions(t *testing.T) {
	t.Parallel()
	bus := read(t, "modules/servicebus.bicep")
	queues := map[string]map[string]any{}
	for _, one := range bus.value(t, "var", "ownQueues").([]any) {
		q := one.(map[string]any)
		queues[q["name"].(string)] = q
	}
	consumed := map[string]bool{}
	for name, f := range functions(t) {
		if f.Type != "serviceBusTrigger" {
			continue
		}
		q := strings.TrimSuffix(f.QueueName, "/$deadletterqueue")
		if queues[q] == nil {
			t.Errorf("%s reads the queue %s, which is not created", name, f.QueueName)
			continue
		}
		consumed[q] = true
		if queues[q]["receive"] != true {
			t.Errorf("%s reads the queue %s without the role for it", name, q)
		}
		if rejected := queues[q+queue.RejectedSuffix]; rejected == nil || rejected["send"] != true {
			t.Errorf("what %s cannot process has no queue %s to go to", name, q+queue.RejectedSuffix)
		}
		if f.Connection != "ServiceBusConnection" || f.Cardinality != "many" || f.DataType != "string" {
			t.Errorf("%s: %+v", name, f)
		}
	}
	if !consumed[queue.ConnectivityEvents] || !consumed[queue.Heartbeats] || len(consumed) != 2 {
		t.Errorf("the functions read %v", slices.Sorted(maps.Keys(consumed)))
	}
	events := queues[queue.ConnectivityEvents]
	if events["send"] != true || events["duplicateDetection"] != true {
		t.Errorf("events go to %v: copies would arrive twice", events)
	}
	// A beat whose deadline has passed is stale whoever sends it: so long a message lives, and no longer.
	if want := fmt.Sprintf("PT%dM", int((presence.MaxTTL + presence.MaxGrace).Minutes())); queues[queue.Heartbeats]["timeToLive"] != want {
		t.Errorf("heartbeats live %v, want %s", queues[queue.Heartbeats]["timeToLive"], want)
	}
	if got := say(bus.find(t, "resource", "queue").tokens); !strings.Contains(got, "requiresSession : false") || !strings.Contains(got, "for q in queues") {
		t.Errorf("the queues are %s", got)
	}
	for _, want := range []string{"concat ( ownQueues ,", "receive : false", "send : true"} {
		if got := say(bus.find(t, "var", "queues").tokens); !strings.Contains(got, want) {
			t.Errorf("queues has no %q: %s", want, got)
		}
	}
	if got := say(bus.find(t, "module", "topic").tokens); !strings.Contains(got, "forwardTo : queue [ 0 ] . name") || bus.value(t, "var", "ownQueues").([]any)[0].(map[string]any)["name"] != queue.ConnectivityEvents {
		t.Errorf("the topic does not forward to %s: %s", queue.ConnectivityEvents, got)
	}
}

func TestContainersAreThoseOfTheStore(t *testing.T) {
	t.Parallel()
	cosmos := read(t, "modules/cosmos.bicep")
	code := sources(t)
	found := map[string]string{}
	for _, m := range regexp.MustCompile(`(events|users|profiles)KeyPath += "(/[a-z]+)"`).FindAllStringSubmatch(code, -1) {
		found[m[1]] = m[2]
	}
	if len(found) != 3 {
		t.Fatalf("the store names the partition keys %v", found)
	}
	created := map[string]bool{}
	for _, one := range cosmos.value(t, "var", "containers").([]any) {
		name, key := at(t, one, "name").(string), at(t, one, "partitionKey")
		created[name] = true
		if want := found[name]; key != want {
			t.Errorf("the container %s has the partition key %v, the store needs %s", name, key, want)
		}
		// What queries filter and sort by is indexed, and nothing else: each path makes every write dearer.
		want := []string{}
		if name == "events" {
			want = []string{"/pk/?", "/user/?", "/epoch/?"}
		}
		if got := texts(t, at(t, one, "indexed")); !slices.Equal(got, want) {
			t.Errorf("the container %s has an index on %v, want %v", name, got, want)
		}
	}
	for _, name := range []string{"events", "users", "profiles"} {
		if !created[name] {
			t.Errorf("the container %s is not created", name)
		}
	}
}

// hostFile is what matters here of host.json.
type hostFile struct {
	FunctionTimeout string
	Logging         struct{ LogLevel map[string]string }
	Extensions      struct {
		HTTP       struct{ RoutePrefix string }
		ServiceBus struct {
			AutoCompleteMessages                                    bool
			PrefetchCount, MaxMessageBatchSize, MinMessageBatchSize int
		}
	}
	CustomHandler struct {
		Description                                            struct{ DefaultExecutablePath string }
		EnableForwardingHTTPRequest, EnableProxyingHTTPRequest bool
	}
}

func readHost(t *testing.T) hostFile {
	t.Helper()
	var host hostFile
	readJSON(t, "../host.json", &host)
	return host
}

// span reads hh:mm:ss.
func span(t *testing.T, text string) time.Duration {
	t.Helper()
	at, err := time.Parse(time.TimeOnly, text)
	if err != nil {
		t.Fatal(err)
	}
	return at.Sub(at.Truncate(24 * time.Hour))
}

func TestBatchesFitTheLockOfTheQueues(t *testing.T) {
	t.Parallel()
	host := readHost(t)
	bus := host.Extensions.ServiceBus
	if !bus.AutoCompleteMessages || bus.PrefetchCount != 0 || bus.MaxMessageBatchSize < 100 || bus.MaxMessageBatchSize > 200 || bus.MinMessageBatchSize > 1 {
		t.Errorf("host.json: serviceBus is %+v", bus)
	}
	lock := read(t, "modules/servicebus.bicep").value(t, "var", "lockDuration")
	if lock != "PT5M" {
		t.Errorf("the lock is %v: a batch gets no renewal, and 5 minutes is the most there is", lock)
	}
	if timeout := span(t, host.FunctionTimeout); timeout > 5*time.Minute {
		t.Errorf("host.json: a call may take %v, longer than the lock", timeout)
	}
	if c := host.CustomHandler; c.Description.DefaultExecutablePath != "handler" || !c.EnableForwardingHTTPRequest || !c.EnableProxyingHTTPRequest {
		t.Errorf("host.json: customHandler is %+v", c)
	}
}

// While a part is away, a batch waits up to half its lock before it goes back. So often it may go back, and no more:
// an outage of a day must dead-letter nothing, and the handler must agree with the queues on which delivery is the last.
func TestAnOutageOfADayDeadLettersNothing(t *testing.T) {
	t.Parallel()
	count := read(t, "main.bicep").value(t, "var", "maxDeliveryCount")
	if count != queue.MaxDeliveryCount {
		t.Errorf("the queues give up after %v deliveries, the handler after %d", count, queue.MaxDeliveryCount)
	}
	if outlasts := queue.MaxDeliveryCount * 150 * time.Second; outlasts < 24*time.Hour || queue.MaxDeliveryCount > 2000 {
		t.Errorf("%d deliveries outlast %v", queue.MaxDeliveryCount, outlasts)
	}
	var local struct{ Values map[string]string }
	readJSON(t, "../local.settings.json.example", &local)
	for where, got := range map[string]string{"README.md": settings(t)["MAX_DELIVERY_COUNT"], "local.settings.json.example": local.Values["MAX_DELIVERY_COUNT"]} {
		if got != fmt.Sprint(queue.MaxDeliveryCount) {
			t.Errorf("%s says that MAX_DELIVERY_COUNT is %s", where, got)
		}
	}
	for _, s := range setups {
		if len(s.refused) > 0 {
			continue
		}
		resources, _, err := evaluate(allFiles(t), types(t), s)
		if err != nil {
			t.Fatal(err)
		}
		for _, one := range resources {
			switch one.kind {
			case "Microsoft.ServiceBus/namespaces/queues":
				want := 10 // nobody here reads it: the default of the service
				if _, name, _ := strings.Cut(one.name, "/"); name == queue.ConnectivityEvents || name == queue.Heartbeats {
					want = queue.MaxDeliveryCount
				}
				if got := at(t, known(one.body), "properties", "maxDeliveryCount"); got != want {
					t.Errorf("%s gives up after %v deliveries, want %d", one.name, got, want)
				}
			case "Microsoft.Web/sites":
				if told, _ := settingsOfApp(one); told["MAX_DELIVERY_COUNT"] != fmt.Sprint(queue.MaxDeliveryCount) {
					t.Errorf("%s is told %s deliveries", one.name, told["MAX_DELIVERY_COUNT"])
				}
			}
		}
	}
}

func TestTheProbeNeedsNoKeyAndNoRedis(t *testing.T) {
	t.Parallel()
	live := functions(t)["Live"]
	if live.Type != "httpTrigger" || live.AuthLevel != "anonymous" || !slices.Contains(live.Methods, "get") {
		t.Errorf("Live is %+v: the platform's probe sends no key", live)
	}
	path := at(t, read(t, "modules/functionapp.bicep").value(t, "resource", "app"), "properties", "siteConfig", "healthCheckPath")
	if want := "/" + readHost(t).Extensions.HTTP.RoutePrefix + "/" + live.Route; path != want {
		t.Errorf("healthCheckPath is %v, Live answers on %s", path, want)
	}
}

// ---- the templates and the settings ------------------------------------------------------------------------------

// ofThePlatform are settings that the Functions host, the platform or a library reads, or that publish keeps.
var ofThePlatform = []string{
	"FUNCTIONS_EXTENSION_VERSION", "FUNCTIONS_WORKER_RUNTIME", "AzureFunctionsWebHost__hostid", "TARGET_BASED_SCALING_ENABLED", "AZURE_CLIENT_ID",
	"APPLICATIONINSIGHTS_CONNECTION_STRING", "APPLICATIONINSIGHTS_AUTHENTICATION_STRING",
	"AzureWebJobsStorage", "AzureWebJobsStorage__accountName", "AzureWebJobsStorage__credential", "AzureWebJobsStorage__clientId",
	"ServiceBusConnection__credential", "ServiceBusConnection__clientId",
	"WEBSITE_CONTENTAZUREFILECONNECTIONSTRING", "WEBSITE_CONTENTSHARE",
	"WEBSITE_RUN_FROM_PACKAGE", "WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID", "PREVIOUS_PACKAGE_URL",
}

// settings reads the table of settings in the README: name and default.
func settings(t *testing.T) map[string]string {
	t.Helper()
	data, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	name := regexp.MustCompile("`([A-Za-z][A-Za-z0-9_]*)`")
	table := map[string]string{}
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 5 || !strings.HasPrefix(strings.TrimSpace(cells[1]), "`") {
			continue
		}
		for _, m := range name.FindAllStringSubmatch(cells[1], -1) {
			table[m[1]] = strings.Trim(strings.TrimSpace(cells[2]), "`")
		}
	}
	if len(table) == 0 {
		t.Fatal("README.md has no table of settings: rows are | `NAME` | default | what |")
	}
	return table
}

// settingsOfTemplates returns the names of all app settings that the templates set, but those that disable functions.
func settingsOfTemplates(t *testing.T) []string {
	t.Helper()
	main, app := read(t, "main.bicep"), read(t, "modules/functionapp.bicep")
	var names []string
	for _, v := range []string{"commonSettings", "redisKeySetting", "routesSetting", "scalingSetting"} {
		names = append(names, keys(main.find(t, "var", v).tokens)...)
	}
	const union = "union ( settings , hostSettings , sharedKeys ? keyStorage : identityStorage , packageSetting , previousPackageSetting )"
	if got := say(app.find(t, "var", "allSettings").tokens); got != union {
		t.Fatalf("allSettings is %s: this test knows %s", got, union)
	}
	for _, v := range []string{"hostSettings", "keyStorage", "identityStorage", "packageSetting", "previousPackageSetting"} {
		names = append(names, keys(app.find(t, "var", v).tokens)...)
	}
	if len(names) < 20 {
		t.Fatalf("only %d settings were found: %v", len(names), names)
	}
	return names
}

func TestEverySettingIsKnown(t *testing.T) {
	t.Parallel()
	table := settings(t)
	valid := regexp.MustCompile(`^[A-Za-z0-9_]+$`) // periods do not work on Linux Elastic Premium
	names := settingsOfTemplates(t)
	for _, name := range names {
		if !valid.MatchString(name) {
			t.Errorf("%s is not a name that the plan takes", name)
		}
		if _, ok := table[name]; !ok && !slices.Contains(ofThePlatform, name) {
			t.Errorf("the templates set %s, which the README does not know", name)
		}
	}
	for _, name := range ofThePlatform {
		if !slices.Contains(names, name) {
			t.Errorf("the templates do not set %s", name)
		}
	}
	ttl := fmt.Sprint(read(t, "main.bicep").value(t, "param", "sessionTtlSeconds"))
	if got := table["SESSION_TTL_SECONDS"]; got != ttl {
		t.Errorf("SESSION_TTL_SECONDS is %s by default, in the templates %s", got, ttl)
	}
}

// sources returns all Go code of the handler without its tests, as one text.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir("../handler", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		all.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}

func TestTheHandlerReadsWhatTheTemplatesSet(t *testing.T) {
	t.Parallel()
	code := sources(t)
	for _, name := range settingsOfTemplates(t) {
		if !slices.Contains(ofThePlatform, name) && !strings.Contains(code, `"`+name+`"`) {
			t.Errorf("the templates set %s, which no code of the handler reads", name)
		}
	}
	if want := `"AzureWebJobs_ExpirationListener_Disabled"`; !strings.Contains(code, want) {
		t.Errorf("no code of the handler reads %s", want)
	}
}

func TestScriptsReadSettingsThatExist(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("publish/common.sh")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`contains\(\[([^\]]+)\], name\)`).FindSubmatch(data)
	if m == nil {
		t.Fatal("common.sh has no list of settings")
	}
	names := settingsOfTemplates(t)
	for _, quoted := range strings.Split(string(m[1]), ", ") {
		if name := strings.Trim(quoted, "'"); !slices.Contains(names, name) {
			t.Errorf("common.sh reads %s, which the templates do not set", name)
		}
	}
}

// ---- alerts ------------------------------------------------------------------------------------------------------

// The alerts read a line that the listener logs. It must be logged, with these fields, and host.json must let it through.
func TestTheListenerLogsWhatTheAlertsRead(t *testing.T) {
	t.Parallel()
	query := say(read(t, "modules/alerts.bicep").find(t, "var", "reports").tokens)
	code := sources(t)
	for _, word := range []string{"listener report", "lagMs", "outboxDepth", "oldestOutboxMs"} {
		if !strings.Contains(query, word) {
			t.Errorf("the alerts do not read %s", word)
		}
		if !strings.Contains(code, `"`+word+`"`) {
			t.Errorf("no code of the handler logs %q", word)
		}
	}
	levels := readHost(t).Logging.LogLevel
	if levels["Host.Function.Console"] != "Information" || levels["default"] != "Warning" {
		t.Errorf("host.json: log levels are %v", levels)
	}
}
