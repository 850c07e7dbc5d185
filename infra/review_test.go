package infra_test

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"userconnectivity/handler/config"
	"userconnectivity/handler/queue"
)

// setup is one set of values of parameters.
type setup struct {
	name string
	// file is the parameter file that it begins with, or none; params replace and add values.
	file   string
	params map[string]any
	// refused are the texts that the templates refuse the set-up with; none: it is deployed.
	refused []string
}

const (
	redisID     = "/subscriptions/00000000-0000-0000-0000-00000000000a/resourceGroups/other/providers/Microsoft.Cache/redis/theirs"
	principalID = "00000000-0000-0000-0000-00000000000b"
)

// setups together evaluate every expression of the templates; review says which one they miss.
var setups = []setup{
	{name: "small", file: "small.bicepparam"},
	{name: "large", file: "large.bicepparam", params: map[string]any{"alertEmail": "people@example.com"}},
	{name: "keys, own Redis", file: "small.bicepparam", params: map[string]any{
		"storageAuth": "keys", "existingRedisHost": "theirs.redis.cache.windows.net:6380", "existingRedisId": redisID, "existingRedisAccessKey": "SECRET",
		"publisherPrincipalId": principalID, "logDailyQuotaGb": -1, "corsOrigins": []any{"https://app.example.com"},
	}},
	{name: "own Redis without an alert, second of everything", file: "large.bicepparam", params: map[string]any{
		"existingRedisHost": "theirs.redis.cache.windows.net", "serviceBusNumber": 2, "cosmosNumber": 2, "listenerOwnPlan": false,
	}},
	{name: "second Redis, topic, routes, queues read with more rights", file: "large.bicepparam", params: map[string]any{
		"redisNumber": 2, "eventsTopic": "presence-events", "expirationRoutes": "cart:*=carts; lock:??=locks;", "expirationQueues": []any{"carts", "locks"},
		"scaleByQueueLength": true, "namePrefix": "abcdefghijk", "listenerInstances": 1, "publisherPrincipalId": principalID, "publisherPrincipalType": "ServicePrincipal",
	}},
	{name: "defaults", params: map[string]any{
		"namePrefix": "presence", "apiPackageUrl": "none", "apiPreviousPackageUrl": "none", "listenerPackageUrl": "none", "listenerPreviousPackageUrl": "none",
	}},
	{name: "everything wrong", file: "small.bicepparam", params: map[string]any{
		"namePrefix": "1-a", "apiMinInstances": 7, "apiMaxInstances": 6, "cosmosMaxRu": 1500, "logDailyQuotaGb": 0, "existingRedisMaxClients": 1,
		"existingRedisHost": "theirs.redis.cache.windows.net:6380,password=SECRET", "existingRedisId": "theirs", "eventsTopic": "carts", "expirationQueues": []any{"carts", "heartbeats"},
		"expirationRoutes": "lock:*=locks", "alertEmail": "people", "publisherPrincipalId": "me", "corsOrigins": []any{"app.example.com"},
	}, refused: []string{
		"connection budget", "namePrefix", "apiMinInstances (7) is above apiMaxInstances (6)", "cosmosMaxRu is 1500", "for example 2000", "logDailyQuotaGb", "no host:port", "existingRedisId is no resource id",
		"eventsTopic is carts", "expirationQueues names a queue of this product", "does not name: locks", "alertEmail", "publisherPrincipalId", "corsOrigins",
	}},
	{name: "azd up", file: "main.bicepparam"},
	{name: "private network", file: "large.bicepparam", params: map[string]any{"privateNetwork": true, "scaleByQueueLength": true}},
	{name: "private apps, own Redis, one plan", file: "large.bicepparam", params: map[string]any{
		"privateNetwork": true, "privateApps": true, "listenerOwnPlan": false, "existingRedisHost": "theirs.redis.cache.windows.net",
	}},
	{name: "everything wrong with a network", file: "small.bicepparam", params: map[string]any{
		"privateNetwork": true, "storageAuth": "keys", "networkAddressPrefix": "10.0.0.0/24",
	}, refused: []string{"privateNetwork needs serviceBusSku Premium", "privateNetwork needs storageAuth identity", "networkAddressPrefix is 10.0.0.0/24"}},
	{name: "private apps without a network", file: "small.bicepparam", params: map[string]any{"privateApps": true}, refused: []string{"privateApps needs privateNetwork"}},
	{name: "zones without a second instance, an id without a host", file: "small.bicepparam", params: map[string]any{
		"zoneRedundant": true, "existingRedisId": redisID,
	}, refused: []string{"zoneRedundant needs two", "existingRedisId needs existingRedisHost"}},
}

// packages are the variables that publish/provision.sh and azd set.
func packages(url string) map[string]string {
	return map[string]string{
		"AZURE_LOCATION": "westeurope", "AZURE_PRINCIPAL_ID": principalID, // azd
		"API_PACKAGE_URL": url, "API_PREVIOUS_PACKAGE_URL": url, "LISTENER_PACKAGE_URL": url, "LISTENER_PREVIOUS_PACKAGE_URL": url,
	}
}

// evaluate returns what a set-up deploys: an error for what Azure, the compiler or the templates themselves refuse.
func evaluate(files map[string]bicep, types map[string]any, s setup) (resources []*deployed, outputs map[string]any, err error) {
	defer func() {
		if p := recover(); p != nil {
			wrong, ok := p.(problem)
			if !ok {
				panic(p)
			}
			err = fmt.Errorf("%s: %w", s.name, wrong)
		}
	}()
	url := "none"
	if s.name != "small" { // before the first publish
		url = "https://stpresence.blob.core.windows.net/packages/a.zip"
	}
	e := &evaluation{files: files, types: types, environment: packages(url)}
	params := map[string]any{}
	file := &scope{evaluation: e, file: files[s.file], symbols: map[string]*symbol{}}
	for _, d := range files[s.file].declarations {
		params[d.name] = file.eval(d.expr, nil)
	}
	maps.Copy(params, s.params)
	outputs = e.deploy("main.bicep", params)
	return e.resources, known(outputs).(map[string]any), nil
}

// review returns what is wrong with templates and parameter files.
func review(sources map[string]string, types map[string]any, folders []string) []string {
	files := map[string]bicep{}
	var wrong []string
	for path, source := range sources {
		b, err := parse(path, source)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		if strings.HasSuffix(path, ".bicepparam") && b.using != "./main.bicep" {
			wrong = append(wrong, fmt.Sprintf("%s uses %q", path, b.using))
		}
		files[path] = b
	}
	if len(wrong) > 0 {
		return wrong
	}
	for _, s := range setups {
		resources, outputs, err := evaluate(files, types, s)
		if len(s.refused) > 0 {
			for _, text := range s.refused {
				if err == nil || !strings.Contains(err.Error(), text) {
					wrong = append(wrong, fmt.Sprintf("%s: the templates do not refuse it with %q: %v", s.name, text, err))
				}
			}
			if err != nil && strings.Contains(err.Error(), "SECRET") {
				wrong = append(wrong, fmt.Sprintf("%s: the refusal holds a secret: %v", s.name, err))
			}
			continue
		}
		if err != nil {
			wrong = append(wrong, err.Error())
			continue
		}
		found := misfitsOfResources(resources, types)
		if len(found) == 0 { // the others rely on the shapes
			found = slices.Concat(misfitsOfApps(resources, folders), misfitsOfMonitoring(resources), misfitsOfQueues(resources),
				misfitsOfStores(resources), misfitsOfAlerts(resources, outputs), misfitsOfWiring(resources), misfitsOfOutputs(outputs, resources))
		}
		for _, one := range found {
			wrong = append(wrong, s.name+": "+one)
		}
	}
	if len(wrong) == 0 {
		for path, b := range files {
			if len(b.declarations) > 0 && !slices.ContainsFunc(b.declarations, func(d declaration) bool { return d.expr != nil && d.expr.seen }) {
				wrong = append(wrong, path+" is not used")
			}
			for _, d := range b.declarations {
				wrong = append(wrong, unseen(b.path, d.expr)...)
			}
		}
	}
	for _, b := range files {
		wrong = append(wrong, unused(b)...)
	}
	slices.Sort(wrong)
	return slices.Compact(wrong)
}

// unseen returns the outermost parts of an expression that no set-up evaluates: nobody knows whether they are right.
func unseen(path string, n *node) []string {
	if n == nil {
		return nil
	}
	if !n.seen && n.op != "for" {
		return []string{fmt.Sprintf("%s:%d: no set-up of the tests evaluates %s", path, n.line, say(n.tokens))}
	}
	var all []string
	for _, one := range n.args {
		if n.op == "::" || n.op == "for" && one.tokens != nil && len(one.tokens) == 0 {
			continue
		}
		all = append(all, unseen(path, one)...)
	}
	for _, d := range n.nested {
		all = append(all, unseen(path, d.expr)...)
	}
	return all
}

// unused returns the parameters, variables and existing resources of a file that nothing names.
func unused(b bicep) []string {
	used := map[string]bool{}
	for _, d := range b.declarations {
		names, _ := uses(d.tokens, map[string]bool{})
		for _, name := range names {
			used[name] = true
		}
	}
	var all []string
	for _, d := range b.declarations {
		nests := d.expr != nil && len(d.expr.nested) > 0
		if !used[d.name] && !nests && (d.kind == "param" || d.kind == "var" || d.existing) && b.using == "" {
			all = append(all, fmt.Sprintf("%s:%d: %s %s is not used", b.path, d.line, d.kind, d.name))
		}
	}
	return all
}

// ---- the apps ----------------------------------------------------------------------------------------------------

// settingsOfApp reads the app settings of a function app.
func settingsOfApp(app *deployed) (settings map[string]string, wrong []string) {
	settings = map[string]string{}
	site := objectAt(app.body, "properties", "siteConfig")
	for _, one := range asList(site["appSettings"]) {
		pair := objectAt(one)
		name, _ := pair["name"].(string)
		value, _ := pair["value"].(string)
		for other := range settings {
			if strings.EqualFold(other, name) {
				wrong = append(wrong, fmt.Sprintf("%s has the settings %s and %s", app.name, other, name))
			}
		}
		settings[name] = value
	}
	return settings, wrong
}

// settingsOfHandler are the names of all settings that the handler reads.
func settingsOfHandler() []string {
	var names []string
	_, _ = config.FromEnv(func(name string) (string, bool) { names = append(names, name); return "", false })
	return names
}

// settingName is what the plan takes: names with periods do not work there.
var settingName = regexp.MustCompile(`^[A-Za-z0-9_]+$`)

// always are the settings of both apps, whatever the set-up.
var always = []string{
	"APPLICATIONINSIGHTS_AUTHENTICATION_STRING", "APPLICATIONINSIGHTS_CONNECTION_STRING", "AZURE_CLIENT_ID", "AzureFunctionsWebHost__hostid",
	"COSMOS_DATABASE", "COSMOS_ENDPOINT", "EVENTS_QUEUE", "FUNCTIONS_EXTENSION_VERSION", "FUNCTIONS_WORKER_RUNTIME", "MAX_DELIVERY_COUNT", "MAX_INSTANCES",
	"REDIS_HOST", "REDIS_MAX_CLIENTS", "SESSION_TTL_SECONDS", "ServiceBusConnection__clientId", "ServiceBusConnection__credential", "ServiceBusConnection__fullyQualifiedNamespace",
}

// sometimes are the settings that come in groups: all of a group, or none.
var sometimes = [][]string{
	{"AzureWebJobsStorage__accountName", "AzureWebJobsStorage__clientId", "AzureWebJobsStorage__credential", "WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID"},
	{"AzureWebJobsStorage", "WEBSITE_CONTENTAZUREFILECONNECTIONSTRING", "WEBSITE_CONTENTSHARE"},
	{"TARGET_BASED_SCALING_ENABLED"},
	{"WEBSITE_RUN_FROM_PACKAGE"},
	{"PREVIOUS_PACKAGE_URL"},
	{"REDIS_ACCESS_KEY"},
	{"EXPIRATION_ROUTES"},
}

// sharedFunctions run in both apps, listenerFunctions in the listener app alone, and all others in the API app alone.
var (
	sharedFunctions   = []string{"Health", "Live", "Metrics"}
	listenerFunctions = []string{"ExpirationListener"}
)

// misfitsOfApps checks the settings of the apps: their names, that the handler takes them, and which functions they run.
func misfitsOfApps(resources []*deployed, folders []string) []string {
	var wrong []string
	say := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	handler := settingsOfHandler()
	apps := map[string]bool{}
	for _, app := range resources {
		if app.kind != "Microsoft.Web/sites" {
			continue
		}
		role, _ := objectAt(app.body, "tags")["userconnectivity"].(string)
		apps[role] = true
		settings, twice := settingsOfApp(app)
		wrong = append(wrong, twice...)
		for _, name := range always {
			if settings[name] == "" {
				say("the %s app has no setting %s", role, name)
			}
		}
		for _, group := range sometimes {
			set := 0
			for _, name := range group {
				if settings[name] != "" {
					set++
				}
			}
			if set > 0 && set < len(group) {
				say("the %s app has %d of the settings %v", role, set, group)
			}
		}
		if (settings["AzureWebJobsStorage"] == "") == (settings["AzureWebJobsStorage__accountName"] == "") {
			say("the %s app has no storage, or two", role)
		}
		disabled := []string{}
		for name, value := range settings {
			function, isSwitch := strings.CutPrefix(name, "AzureWebJobs_")
			function, isSwitch2 := strings.CutSuffix(function, "_Disabled")
			switch {
			case isSwitch && isSwitch2:
				if !slices.Contains(folders, function) || value != "true" {
					say("the %s app sets %s to %q: the functions are %v", role, name, value, folders)
				}
				disabled = append(disabled, function)
			case !settingName.MatchString(name):
				say("%s is not a name that the plan takes", name)
			case !slices.Contains(always, name) && !slices.ContainsFunc(sometimes, func(group []string) bool { return slices.Contains(group, name) }):
				say("the %s app sets %s, which nothing reads", role, name)
			case !slices.Contains(handler, name) && !slices.Contains(ofThePlatform, name):
				say("the %s app sets %s, which the handler does not read", role, name)
			}
		}
		for _, function := range folders {
			runs := role == "listener"
			if slices.Contains(sharedFunctions, function) {
				runs = true
			} else if !slices.Contains(listenerFunctions, function) {
				runs = role == "api"
			}
			if runs == slices.Contains(disabled, function) {
				say("the function %s: in the %s app it is to run: %v, and it is the other way round", function, role, runs)
			}
		}
		cfg, err := config.FromEnv(func(name string) (string, bool) { v, ok := settings[name]; return v, ok })
		if err != nil {
			say("the handler of the %s app refuses its settings: %v", role, err)
		}
		if cfg.Listener != (role == "listener") {
			say("the %s app runs a listener: %v", role, cfg.Listener)
		}
		site := objectAt(app.body, "properties", "siteConfig")
		if n, _ := site["preWarmedInstanceCount"].(int); n > 10 {
			say("the %s app keeps %d instances warm, at most 10 can be", role, n)
		}
		least, _ := site["minimumElasticInstanceCount"].(int)
		if most, _ := site["functionAppScaleLimit"].(int); least < 1 || least > most {
			say("the %s app has a minimum above its maximum", role)
		}
		if site["healthCheckPath"] != "/api/live" {
			say("the health check of the %s app asks for %v", role, site["healthCheckPath"])
		}
	}
	if !maps.Equal(apps, map[string]bool{"api": true, "listener": true}) {
		say("the apps are %v", apps)
	}
	return wrong
}

// values are the settings that can have one value only.
var values = map[string]string{
	"FUNCTIONS_EXTENSION_VERSION": "~4", "FUNCTIONS_WORKER_RUNTIME": "custom",
	"AzureWebJobsStorage__credential": "managedidentity", "ServiceBusConnection__credential": "managedidentity",
}

// misfitsOfWiring checks that what one resource is told of another is true: ids, names, endpoints, identities, places.
func misfitsOfWiring(resources []*deployed) []string {
	var wrong []string
	ids, byKind := map[string]bool{}, map[string][]*deployed{}
	for _, one := range resources {
		ids[strings.ToLower(one.id)] = true
		byKind[one.kind] = append(byKind[one.kind], one)
		if one.kind == "Microsoft.Network/virtualNetworks" {
			for _, subnet := range asList(objectAt(one.body, "properties")["subnets"]) {
				name, _ := objectAt(subnet)["name"].(string)
				ids[strings.ToLower(one.id+"/subnets/"+name)] = true
			}
		}
	}
	names := func(kind string) (list []string) {
		for _, one := range byKind[kind] {
			list = append(list, one.name[strings.LastIndex(one.name, "/")+1:])
		}
		return list
	}
	for _, kind := range []string{"Microsoft.ManagedIdentity/userAssignedIdentities", "Microsoft.DocumentDB/databaseAccounts", "Microsoft.ServiceBus/namespaces", "Microsoft.Storage/storageAccounts"} {
		if len(names(kind)) != 1 {
			return []string{fmt.Sprintf("there are %d of %s", len(names(kind)), kind)}
		}
	}
	identity := names("Microsoft.ManagedIdentity/userAssignedIdentities")[0]
	clientID, appPrincipal := fakeGUID("clientId"+identity), fakeGUID("principalId"+identity)
	for _, one := range resources {
		say := func(format string, args ...any) {
			wrong = append(wrong, fmt.Sprintf("%s:%d: %s: ", one.file, one.line, one.name)+fmt.Sprintf(format, args...))
		}
		body := objectAt(one.body)
		for _, text := range textsIn(body) {
			if strings.HasPrefix(text, groupID+"/") && !ids[strings.ToLower(text)] && !strings.HasSuffix(text, "/sqlRoleDefinitions/00000000-0000-0000-0000-000000000002") {
				say("it names %s, which is not deployed", text)
			}
		}
		want := "westeurope"
		if slices.Contains([]string{"Microsoft.Insights/actionGroups", "Microsoft.Insights/metricAlerts", "Microsoft.Network/privateDnsZones", "Microsoft.Network/privateDnsZones/virtualNetworkLinks"}, one.kind) {
			want = "global"
		}
		if place, ok := body["location"]; ok && place != want {
			say("its location is %v, want %s", place, want)
		}
		properties := objectAt(body, "properties")
		user := objectAt(properties, "user")
		for _, principal := range []any{properties["principalId"], user["objectId"]} {
			if principal != nil && principal != appPrincipal && principal != principalID {
				say("%v is neither the principal of the apps nor that of the publisher", principal)
			}
		}
		if one.kind != "Microsoft.Web/sites" {
			continue
		}
		settings, _ := settingsOfApp(one)
		for name, value := range values {
			if got, ok := settings[name]; ok && got != value {
				say("%s is %q, want %q", name, got, value)
			}
		}
		for _, name := range []string{"AZURE_CLIENT_ID", "ServiceBusConnection__clientId", "AzureWebJobsStorage__clientId"} {
			if got, ok := settings[name]; ok && got != clientID {
				say("%s is not the client id of the identity", name)
			}
		}
		if got := settings["APPLICATIONINSIGHTS_AUTHENTICATION_STRING"]; got != "ClientId="+clientID+";Authorization=AAD" {
			say("APPLICATIONINSIGHTS_AUTHENTICATION_STRING is %q", got)
		}
		account := names("Microsoft.Storage/storageAccounts")[0]
		for _, name := range []string{"AzureWebJobsStorage", "WEBSITE_CONTENTAZUREFILECONNECTIONSTRING"} {
			if got, ok := settings[name]; ok && got != "DefaultEndpointsProtocol=https;AccountName="+account+";EndpointSuffix=core.windows.net;AccountKey=KEY" {
				say("%s is %q", name, got)
			}
		}
		if settings["AzureFunctionsWebHost__hostid"] != one.name {
			say("its host id is %q", settings["AzureFunctionsWebHost__hostid"])
		}
		for name, of := range map[string][]string{
			"AzureWebJobsStorage__accountName": names("Microsoft.Storage/storageAccounts"),
			"WEBSITE_CONTENTSHARE":             names("Microsoft.Storage/storageAccounts/fileServices/shares"),
			"COSMOS_DATABASE":                  names("Microsoft.DocumentDB/databaseAccounts/sqlDatabases"),
			"EVENTS_QUEUE":                     append(names("Microsoft.ServiceBus/namespaces/queues"), names("Microsoft.ServiceBus/namespaces/topics")...),
		} {
			if got, ok := settings[name]; ok && !slices.Contains(of, got) {
				say("%s is %q, deployed are %v", name, got, of)
			}
		}
		if got, of := settings["COSMOS_ENDPOINT"], names("Microsoft.DocumentDB/databaseAccounts")[0]; got != "https://"+of+".documents.azure.com:443/" {
			say("COSMOS_ENDPOINT is %q", got)
		}
		if got, of := settings["ServiceBusConnection__fullyQualifiedNamespace"], names("Microsoft.ServiceBus/namespaces")[0]; got != of+".servicebus.windows.net" {
			say("ServiceBusConnection__fullyQualifiedNamespace is %q", got)
		}
		if of := names("Microsoft.Cache/redisEnterprise"); len(of) > 0 && settings["REDIS_HOST"] != of[0]+".westeurope.redis.azure.net:10000" {
			say("REDIS_HOST is %q", settings["REDIS_HOST"])
		}
	}
	wrong = append(wrong, misfitsOfNetwork(byKind)...)
	// Who sends and receives may.
	granted := map[string]bool{}
	for _, one := range byKind["Microsoft.Authorization/roleAssignments"] {
		properties := objectAt(one.body, "properties")
		role, _ := properties["roleDefinitionId"].(string)
		if properties["principalId"] == appPrincipal {
			granted[one.scope+" "+role[strings.LastIndex(role, "/")+1:]] = true
		}
	}
	for _, one := range append(byKind["Microsoft.ServiceBus/namespaces/queues"], byKind["Microsoft.ServiceBus/namespaces/topics"]...) {
		_, name, _ := strings.Cut(one.name, "/")
		receives := name == queue.ConnectivityEvents || name == queue.Heartbeats
		if receives && !granted[one.id+" 4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0"] {
			wrong = append(wrong, "the apps may not receive from "+name)
		}
		if name != queue.Heartbeats && !granted[one.id+" 69a216fc-b8fb-44d8-bc22-1f3c2cd27a39"] {
			wrong = append(wrong, "the apps may not send to "+name)
		}
	}
	return wrong
}

// doors are the private endpoints that a closed resource needs, and their DNS zones: by type, then by sub-resource.
var doors = map[string]map[string]string{
	"Microsoft.Storage/storageAccounts":     {"blob": "privatelink.blob.core.windows.net", "table": "privatelink.table.core.windows.net"},
	"Microsoft.ServiceBus/namespaces":       {"namespace": "privatelink.servicebus.windows.net"},
	"Microsoft.DocumentDB/databaseAccounts": {"Sql": "privatelink.documents.azure.com"},
	"Microsoft.Cache/redisEnterprise":       {"redisEnterprise": "privatelink.redis.azure.net"},
	"Microsoft.Web/sites":                   {"sites": "privatelink.azurewebsites.net"},
}

// misfitsOfNetwork checks that what is closed has its private endpoints, and that apps which need them are in the network.
func misfitsOfNetwork(byKind map[string][]*deployed) []string {
	var wrong []string
	zones := map[string]string{} // by the name of the endpoint
	for _, one := range byKind["Microsoft.Network/privateEndpoints/privateDnsZoneGroups"] {
		endpoint, _, _ := strings.Cut(one.name, "/")
		for _, text := range textsIn(known(one.body)) {
			if _, zone, ok := strings.Cut(text, "/privateDnsZones/"); ok {
				zones[endpoint] = zone
			}
		}
	}
	opened := map[string]string{} // zones by id and sub-resource
	for _, one := range byKind["Microsoft.Network/privateEndpoints"] {
		for _, c := range asList(objectAt(one.body, "properties")["privateLinkServiceConnections"]) {
			connection := objectAt(c, "properties")
			for _, group := range asList(connection["groupIds"]) {
				opened[fmt.Sprint(connection["privateLinkServiceId"], " ", group)] = zones[one.name]
			}
		}
	}
	closed := 0
	for kind, groups := range doors {
		for _, one := range byKind[kind] {
			properties := objectAt(one.body, "properties")
			if access := properties["publicNetworkAccess"]; access != "Disabled" {
				if access != "Enabled" {
					wrong = append(wrong, fmt.Sprintf("%s does not say whether it is open", one.name))
				}
				continue
			}
			closed++
			for group, zone := range groups {
				if got := opened[one.id+" "+group]; got != zone {
					wrong = append(wrong, fmt.Sprintf("%s is closed, and its endpoint for %s has the zone %q, want %s", one.name, group, got, zone))
				}
			}
		}
	}
	for _, app := range byKind["Microsoft.Web/sites"] {
		properties := objectAt(app.body, "properties")
		if subnet, _ := properties["virtualNetworkSubnetId"].(string); (subnet != "") != (closed > 0) {
			wrong = append(wrong, fmt.Sprintf("%s calls out of the subnet %q while %d resources are closed", app.name, subnet, closed))
		}
	}
	return wrong
}

// objectAt follows a path of keys into a value; what is not there, or no object, is an empty one.
func objectAt(value any, path ...string) map[string]any {
	object, _ := known(value).(map[string]any)
	for _, key := range path {
		object, _ = object[key].(map[string]any)
	}
	if object == nil {
		return map[string]any{}
	}
	return object
}

// textsIn are all strings in a value.
func textsIn(value any) []string {
	var all []string
	switch v := value.(type) {
	case string:
		all = append(all, v)
	case []any:
		for _, one := range v {
			all = append(all, textsIn(one)...)
		}
	case map[string]any:
		for key, one := range v {
			all = append(append(all, key), textsIn(one)...)
		}
	}
	return all
}

// ---- monitoring --------------------------------------------------------------------------------------------------

// metrics that the services have, by the type of the resource, with the dimensions that these templates filter by.
var metrics = map[string]map[string][]string{
	"Microsoft.ServiceBus/namespaces":       {"DeadletteredMessages": {"EntityName"}, "ActiveMessages": {"EntityName"}},
	"Microsoft.DocumentDB/databaseAccounts": {"TotalRequests": {"StatusCode"}},
	"Microsoft.Cache/redisEnterprise":       {"connectedclients": nil},
	"Microsoft.Cache/redis":                 {"connectedclients": nil},
	"Microsoft.Web/sites":                   {"HealthCheckStatus": nil},
}

// categories of diagnostic logs and metrics that the services have.
var categories = map[string][]string{
	"Microsoft.ServiceBus/namespaces":           {"OperationalLogs", "AllMetrics"},
	"Microsoft.DocumentDB/databaseAccounts":     {"ControlPlaneRequests", "Requests"},
	"Microsoft.Cache/redisEnterprise":           {"AllMetrics"},
	"Microsoft.Cache/redisEnterprise/databases": {"ConnectionEvents"},
}

// alerts are what each alert watches: severity, what, how long, and when it fires.
var alerts = map[string]string{
	"dead-letters":       "2 DeadletteredMessages EntityName Include [*] Maximum PT5M GreaterThan 0",
	"rejected":           "2 ActiveMessages EntityName Include [connectivity-events-rejected heartbeats-rejected] Maximum PT5M GreaterThan 0",
	"cosmos-429":         "2 TotalRequests StatusCode Include [429] Count PT5M GreaterThan 100",
	"redis-connections":  "2 connectedclients Maximum PT5M GreaterThan 80 %",
	"listener-down":      "0 HealthCheckStatus Average PT5M LessThan 1",
	"listener-unhealthy": "1 HealthCheckStatus Average PT5M LessThan 100",
	"listener-silent":    "1 let taken = toscalar(AzureMetrics | count);\n" + reports + "| summarize reports = count()\n| extend reports = iff(taken > 0, reports, 1) reports Total PT15M LessThan 1",
	"logs-capped":        "2 _LogOperation | where Category =~ 'Ingestion' and Detail has 'OverQuota' | summarize capped = count() capped Total PT15M GreaterThan 0",
	"expiry-lag":         "1 " + reports + " lagMs Maximum PT5M GreaterThan 1000",
	"outbox-depth":       "1 " + reports + " outboxDepth Minimum PT5M GreaterThan 1000",
	"outbox-old":         "1 " + reports + " oldestOutboxMs Minimum PT5M GreaterThan 60000",
}

// reports reads the line that the listener logs.
const reports = `AppTraces
| where AppRoleName =~ 'LISTENER' and Message has 'listener report'
| extend lagMs = tolong(extract('lagMs"?[:=]([0-9]+)', 1, Message)),
         outboxDepth = tolong(extract('outboxDepth"?[:=]([0-9]+)', 1, Message)),
         oldestOutboxMs = tolong(extract('oldestOutboxMs"?[:=]([0-9]+)', 1, Message))
`

// misfitsOfAlerts compares the alerts with what each is to watch.
func misfitsOfAlerts(resources []*deployed, outputs map[string]any) []string {
	var wrong []string
	seen := map[string]bool{}
	for _, one := range resources {
		if one.kind != "Microsoft.Insights/metricAlerts" && one.kind != "Microsoft.Insights/scheduledQueryRules" {
			continue
		}
		properties := objectAt(one.body, "properties")
		got := fmt.Sprint(properties["severity"])
		for _, c := range asList(objectAt(properties, "criteria")["allOf"]) {
			criterion := objectAt(c)
			for _, part := range []any{criterion["metricName"], criterion["query"], criterion["metricMeasureColumn"]} {
				if part != nil {
					got += fmt.Sprint(" ", part)
				}
			}
			for _, d := range asList(criterion["dimensions"]) {
				got += fmt.Sprint(" ", objectAt(d)["name"], " ", objectAt(d)["operator"], " ", objectAt(d)["values"])
			}
			got += fmt.Sprint(" ", criterion["timeAggregation"], " ", properties["windowSize"], " ", criterion["operator"], " ")
			if limit, _ := outputs["redisMaxClients"].(int); criterion["threshold"] == limit*80/100 {
				got += "80 %"
			} else {
				got += fmt.Sprint(criterion["threshold"])
			}
		}
		got = strings.ReplaceAll(got, fmt.Sprintf("'%v'", outputs["listenerApp"]), "'LISTENER'")
		_, name, _ := strings.Cut(one.name, "-")
		seen[name] = true
		if got != alerts[name] {
			wrong = append(wrong, fmt.Sprintf("the alert %s watches\n%s\nwant\n%s", name, got, alerts[name]))
		}
		if properties["enabled"] != true || properties["autoMitigate"] != true {
			wrong = append(wrong, fmt.Sprintf("the alert %s is off, or does not end by itself", name))
		}
	}
	for name := range alerts {
		if !seen[name] && name != "redis-connections" { // not for a Redis whose id is not known
			wrong = append(wrong, "there is no alert "+name)
		}
	}
	return wrong
}

var idOfResource = regexp.MustCompile(`/providers/(Microsoft\.[A-Za-z]+)((?:/[A-Za-z]+/[^/]+)+)$`)

// kindOfID is the type of the resource that has an id.
func kindOfID(id string) string {
	m := idOfResource.FindStringSubmatch(id)
	if m == nil {
		return ""
	}
	kind := m[1]
	for i, part := range strings.Split(m[2], "/")[1:] {
		if i%2 == 0 {
			kind += "/" + part
		}
	}
	return kind
}

// misfitsOfMonitoring checks alerts and diagnostic settings against what the services offer.
func misfitsOfMonitoring(resources []*deployed) []string {
	var wrong []string
	for _, one := range resources {
		say := func(format string, args ...any) {
			wrong = append(wrong, fmt.Sprintf("%s:%d: %s: ", one.file, one.line, one.name)+fmt.Sprintf(format, args...))
		}
		properties := objectAt(one.body, "properties")
		switch one.kind {
		case "Microsoft.Insights/metricAlerts":
			scopes := asList(properties["scopes"])
			kind := kindOfID(fmt.Sprint(scopes...))
			for _, c := range asList(objectAt(properties, "criteria")["allOf"]) {
				criterion := objectAt(c)
				metric, _ := criterion["metricName"].(string)
				dimensions, ok := metrics[kind][metric]
				if !ok {
					say("a %s has no metric %s", kind, metric)
				}
				if space := criterion["metricNamespace"]; space != nil && space != kind {
					say("the metric namespace is %v, the resource a %s", space, kind)
				}
				for _, d := range asList(criterion["dimensions"]) {
					if name, _ := objectAt(d)["name"].(string); !slices.Contains(dimensions, name) {
						say("the metric %s has no dimension %v", metric, name)
					}
				}
			}
			checkSeverity(properties, say)
		case "Microsoft.Insights/scheduledQueryRules":
			for _, c := range asList(objectAt(properties, "criteria")["allOf"]) {
				criterion := objectAt(c)
				query, _ := criterion["query"].(string)
				column, _ := criterion["metricMeasureColumn"].(string)
				if !strings.Contains(query, " "+column+" = ") {
					say("the query has no column %s", column)
				}
				for _, table := range tableOfQuery.FindAllStringSubmatch(query, -1) {
					if name := table[1] + table[3]; !slices.Contains([]string{"AppTraces", "AzureMetrics", "_LogOperation"}, name) {
						say("there is no table %s", name)
					}
				}
			}
			checkSeverity(properties, say)
			if one.body["kind"] != "LogAlert" {
				say("its kind is %v", one.body["kind"])
			}
		case "Microsoft.Insights/diagnosticSettings":
			for _, list := range []string{"logs", "metrics"} {
				for _, c := range asList(properties[list]) {
					if name, _ := objectAt(c)["category"].(string); !slices.Contains(categories[kindOfID(one.scope)], name) {
						say("a %s has no category %v", kindOfID(one.scope), name)
					}
				}
			}
		case "Microsoft.Authorization/roleAssignments":
			role, _ := properties["roleDefinitionId"].(string)
			kind, id := kindOfID(one.scope), role[strings.LastIndex(role, "/")+1:]
			if !slices.Contains(rolesByScope[kind], id) {
				say("the role %s is not one for a %s", id, kind)
			}
			if !strings.Contains(role, "/Microsoft.Authorization/roleDefinitions/") {
				say("roleDefinitionId is %s", role)
			}
		}
	}
	return wrong
}

var tableOfQuery = regexp.MustCompile(`(?m)^([A-Z_][A-Za-z]+)( \||$)|toscalar\(([A-Za-z]+) `)

func checkSeverity(properties map[string]any, say func(string, ...any)) {
	if n, _ := properties["severity"].(int); n < 0 || n > 4 {
		say("severities go from 0 to 4, not %d", n)
	}
	for _, key := range []string{"evaluationFrequency", "windowSize"} {
		if text := properties[key]; !slices.Contains([]any{"PT1M", "PT5M", "PT10M", "PT15M", "PT30M", "PT1H"}, text) {
			say("%s is %v", key, text)
		}
	}
}

// rolesByScope are the roles that are granted, by the type of what they are for.
var rolesByScope = map[string][]string{
	"Microsoft.ServiceBus/namespaces/queues":                    {"4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0", "69a216fc-b8fb-44d8-bc22-1f3c2cd27a39", "090c5cfd-751d-490a-894a-3ce6f1109419"},
	"Microsoft.ServiceBus/namespaces/topics":                    {"69a216fc-b8fb-44d8-bc22-1f3c2cd27a39"},
	"Microsoft.Storage/storageAccounts":                         {"b7e6dc6d-f1e8-4753-8033-0f276bb0955b", "0a9a7e1f-b9d0-4cc4-a60d-0319b160aaa3"},
	"Microsoft.Storage/storageAccounts/blobServices/containers": {"ba92f5b4-2d11-453d-a403-e96b0029c9fe"},
	"Microsoft.Insights/components":                             {"3913510d-42f4-4e42-8a64-420c390055eb"},
}

// ---- queues ------------------------------------------------------------------------------------------------------

// misfitsOfQueues checks the limits of the service for queues, topics, subscriptions and their names.
func misfitsOfQueues(resources []*deployed) []string {
	var wrong []string
	found := map[string]bool{}
	for _, one := range resources {
		if !strings.HasPrefix(one.kind, "Microsoft.ServiceBus/namespaces/") {
			continue
		}
		say := func(format string, args ...any) {
			wrong = append(wrong, fmt.Sprintf("%s:%d: %s: ", one.file, one.line, one.name)+fmt.Sprintf(format, args...))
		}
		properties := objectAt(one.body, "properties")
		if n, ok := properties["maxDeliveryCount"].(int); ok && (n < 1 || n > 2000) {
			say("the max delivery count is %d", n)
		}
		if lock, ok := properties["lockDuration"].(string); ok && lock != "PT5M" {
			say("the lock is %s: a batch needs PT5M, which is the most there is", lock)
		}
		if n, ok := properties["maxSizeInMegabytes"].(int); ok && !slices.Contains([]int{1024, 2048, 3072, 4096, 5120}, n) {
			say("the size is %d MB", n)
		}
		if properties["requiresSession"] == true {
			say("it has sessions")
		}
		if window := properties["duplicateDetectionHistoryTimeWindow"]; (window != nil) != (properties["requiresDuplicateDetection"] == true) && window != nil {
			say("it has a window for duplicates and no detection")
		}
		_, name, _ := strings.Cut(one.name, "/")
		found[name] = true
		if forward, ok := properties["forwardTo"].(string); ok && !found[forward] {
			say("it forwards to %s, which is not there", forward)
		}
	}
	for _, name := range []string{queue.ConnectivityEvents, queue.ConnectivityEvents + queue.RejectedSuffix, queue.Heartbeats, queue.Heartbeats + queue.RejectedSuffix} {
		if !found[name] {
			wrong = append(wrong, "there is no queue "+name)
		}
	}
	return wrong
}

// ---- stores and outputs ------------------------------------------------------------------------------------------

// misfitsOfStores checks what the event log relies on: containers, keys, indexes, times to live.
func misfitsOfStores(resources []*deployed) []string {
	var wrong []string
	want := map[string]string{
		"events":   "[/pk] 2592000 [/pk/? /user/? /epoch/?] [/*]",
		"users":    "[/id] -1 [] [/*]",
		"profiles": "[/id] -1 [] [/*]",
	}
	for _, one := range resources {
		switch one.kind {
		case "Microsoft.DocumentDB/databaseAccounts/sqlDatabases/containers":
			body := objectAt(one.body, "properties", "resource")
			name := one.name[strings.LastIndex(one.name, "/")+1:]
			index := objectAt(body, "indexingPolicy")
			got := fmt.Sprint(objectAt(body, "partitionKey")["paths"], " ", body["defaultTtl"], " ", textsIn(index["includedPaths"]), " ", textsIn(index["excludedPaths"]))
			got = strings.ReplaceAll(got, "path ", "")
			if got != want[name] || body["id"] != name {
				wrong = append(wrong, fmt.Sprintf("the container %s (%v) is %s, want %s", name, body["id"], got, want[name]))
			}
			delete(want, name)
			throughput := objectAt(one.body, "properties", "options", "autoscaleSettings")
			if n, ok := throughput["maxThroughput"].(int); ok && (n < 1000 || n%1000 != 0) {
				wrong = append(wrong, fmt.Sprintf("the container %s has at most %d RU/s: autoscale takes multiples of 1000", name, n))
			}
		case "Microsoft.DocumentDB/databaseAccounts":
			for _, place := range asList(objectAt(one.body, "properties")["locations"]) {
				if objectAt(place)["failoverPriority"] != 0 || objectAt(place)["locationName"] != "westeurope" {
					wrong = append(wrong, fmt.Sprintf("the account is in %v", place))
				}
			}
		}
	}
	for name := range want {
		wrong = append(wrong, "there is no container "+name)
	}
	// publish.sh uploads there.
	if !slices.ContainsFunc(resources, func(one *deployed) bool {
		return strings.HasSuffix(one.id, "/blobServices/default/containers/packages")
	}) {
		wrong = append(wrong, "there is no container packages")
	}
	return wrong
}

// misfitsOfOutputs checks what scripts, documentation and people are told.
func misfitsOfOutputs(outputs map[string]any, resources []*deployed) []string {
	var wrong []string
	for _, one := range resources {
		want := map[string]string{
			"Microsoft.Storage/storageAccounts": "storageAccount", "Microsoft.ManagedIdentity/userAssignedIdentities": "identityName",
		}[one.kind]
		if role, _ := objectAt(one.body, "tags")["userconnectivity"].(string); role != "" {
			want = role + "App"
		}
		if want != "" && outputs[want] != one.name {
			wrong = append(wrong, fmt.Sprintf("the output %s is %v, want %s", want, outputs[want], one.name))
		}
	}
	if got := outputs["apiHost"]; got != fmt.Sprint(outputs["apiApp"], ".azurewebsites.net") {
		wrong = append(wrong, fmt.Sprintf("the output apiHost is %v", got))
	}
	return wrong
}

// ---- the tests ---------------------------------------------------------------------------------------------------

// allFiles are the templates and the parameter files.
func allFiles(t *testing.T) map[string]bicep {
	t.Helper()
	all := map[string]bicep{}
	for path := range sourcesOfTemplates(t) {
		all[path] = read(t, path)
	}
	return all
}

// folders are the names of the functions.
func folders(t *testing.T) []string {
	t.Helper()
	return slices.Sorted(maps.Keys(functions(t)))
}

func TestTemplatesDeployWhatAzureTakes(t *testing.T) {
	t.Parallel()
	for _, wrong := range review(sourcesOfTemplates(t), types(t), folders(t)) {
		t.Error(wrong)
	}
}
