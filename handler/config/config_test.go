package config_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/config"
)

func fromEnv(env map[string]string) (config.Config, config.Problems) {
	return config.FromEnv(func(name string) (string, bool) { v, ok := env[name]; return v, ok })
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	c, err := fromEnv(nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Port != 8080 || c.RedisURL != "" || c.Partitions != 16 || !c.LeaseKeys || c.SessionTTL != 45*time.Second || c.EventsQueue != "connectivity-events" || c.ExpirationRoutes != "" ||
		c.EventTypePrefix != "userconnectivity." || c.MaxDelivery != 600 || c.LocalQueueURL != "" || c.DataDir != ".data" || c.LogLevel != slog.LevelInfo ||
		c.App == "" || c.Instance == "" || !c.Listener || c.RedisHost != "" || c.RedisAccessKey != "" || c.MaxInstances != 20 || c.RedisMaxClients != 0 ||
		c.Traced() || c.TracesExporter != "otlp" || c.TracesSampler != "parentbased_always_on" || c.TracesRatio != 1 || c.TracesTimeout != 10*time.Second || c.TracesHeaders != "" ||
		c.MaintenanceEvents != "auto" || c.ServiceBusConnection != "" || c.ServiceBusNamespace != "" || c.CosmosEndpoint != "" || c.CosmosKey != "" || c.CosmosDatabase != "connectivity" {
		t.Errorf("%+v", c)
	}
	empty := map[string]string{}
	for _, name := range config.Names() {
		empty[name] = "  "
	}
	blank, err := fromEnv(empty)
	if err != nil || blank != c {
		t.Errorf("blank values are not as none: %+v, %v", blank, err)
	}
}

const (
	sas             = "Endpoint=sb://x/;SharedAccessKeyName=rule;SharedAccessKey=a2V5"
	emulator        = "Endpoint=sb://localhost:5672;SharedAccessKeyName=rule;SharedAccessKey=a2V5;UseDevelopmentEmulator=true;"
	sharedSignature = "Endpoint=sb://x.servicebus.windows.net/;SharedAccessSignature=SharedAccessSignature sr=x&sig=y&se=1&skn=z"
)

func TestGoodSettings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, value string
		got         func(config.Config) any
		want        any
	}{
		{"FUNCTIONS_CUSTOMHANDLER_PORT", "0", func(c config.Config) any { return c.Port }, 0},
		{"FUNCTIONS_CUSTOMHANDLER_PORT", "65535", func(c config.Config) any { return c.Port }, 65535},
		{"REDIS_URL", " rediss://user:pw@host:6380/1 ", func(c config.Config) any { return string(c.RedisURL) }, "rediss://user:pw@host:6380/1"},
		{"REDIS_PARTITIONS", "1", func(c config.Config) any { return c.Partitions }, 1},
		{"REDIS_PARTITIONS", "1024", func(c config.Config) any { return c.Partitions }, 1024},
		{"LEASE_KEYS", "OFF", func(c config.Config) any { return c.LeaseKeys }, false},
		{"REDIS_SET_NOTIFICATIONS", "OFF", func(c config.Config) any { return c.SetNotifications }, false},
		{"SESSION_TTL_SECONDS", "5", func(c config.Config) any { return c.SessionTTL }, 5 * time.Second},
		{"SESSION_TTL_SECONDS", "3600", func(c config.Config) any { return c.SessionTTL }, time.Hour},
		{"EVENTS_QUEUE", "team/events.v2", func(c config.Config) any { return c.EventsQueue }, "team/events.v2"},
		{"EXPIRATION_ROUTES", " cart:* = carts; lock:??=team/locks ;", func(c config.Config) any { return string(c.ExpirationRoutes) }, "cart:*=carts;lock:??=team/locks"},
		{"EVENT_TYPE_PREFIX", "com.example.", func(c config.Config) any { return c.EventTypePrefix }, "com.example."},
		{"MAX_DELIVERY_COUNT", "2000", func(c config.Config) any { return c.MaxDelivery }, 2000},
		{"LOCAL_QUEUE_URL", "http://127.0.0.1:7071/local/queues", func(c config.Config) any { return c.LocalQueueURL }, "http://127.0.0.1:7071/local/queues"},
		{"DATA_DIR", "/var/data", func(c config.Config) any { return c.DataDir }, "/var/data"},
		{"LOG_LEVEL", "WARN", func(c config.Config) any { return c.LogLevel }, slog.LevelWarn},
		{"REDIS_HOST", "name.redis.azure.net:10000", func(c config.Config) any { return c.RedisHost }, "name.redis.azure.net:10000"},
		{"REDIS_ACCESS_KEY", "key", func(c config.Config) any { return string(c.RedisAccessKey) }, "key"},
		{"MAX_INSTANCES", "1000", func(c config.Config) any { return c.MaxInstances }, 1000},
		{"REDIS_MAX_CLIENTS", "250", func(c config.Config) any { return c.RedisMaxClients }, 250},
		{"OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/", func(c config.Config) any { return c.TracesEndpoint }, "http://collector:4318/v1/traces"},
		{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector/x", func(c config.Config) any { return c.TracesEndpoint }, "https://collector/x"},
		{"OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=key%20word, b = c", func(c config.Config) any { return string(c.TracesHeaders) }, "x-api-key=key%20word, b = c"},
		{"OTEL_EXPORTER_OTLP_TIMEOUT", "500", func(c config.Config) any { return c.TracesTimeout }, 500 * time.Millisecond},
		{"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "600000", func(c config.Config) any { return c.TracesTimeout }, 10 * time.Minute},
		{"OTEL_EXPORTER_OTLP_PROTOCOL", "HTTP/protobuf", func(c config.Config) any { return c.Traced() }, false},
		{"OTEL_TRACES_EXPORTER", "Console", func(c config.Config) any { return c.Traced() }, true},
		{"OTEL_TRACES_SAMPLER", "traceidratio", func(c config.Config) any { return c.TracesSampler }, "traceidratio"},
		{"OTEL_TRACES_SAMPLER_ARG", "0.25", func(c config.Config) any { return c.TracesRatio }, 0.25},
		{"OTEL_SERVICE_NAME", "presence", func(c config.Config) any { return c.TracesService }, "presence"},
		{"OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test", func(c config.Config) any { return c.TracesAttributes }, "deployment.environment.name=test"},
		{"OTEL_SDK_DISABLED", "true", func(c config.Config) any { return c.TracesExporter }, "none"},
		{"REDIS_MAINTENANCE_EVENTS", "Off", func(c config.Config) any { return c.MaintenanceEvents }, "off"},
		{"ServiceBusConnection", sas, func(c config.Config) any { return string(c.ServiceBusConnection) }, sas},
		{"ServiceBusConnection", sas + ";EntityPath=Connectivity-Events", func(c config.Config) any { return string(c.ServiceBusConnection) }, sas + ";EntityPath=Connectivity-Events"},
		{"ServiceBusConnection", emulator, func(c config.Config) any { return string(c.ServiceBusConnection) }, emulator},
		{"ServiceBusConnection", sharedSignature, func(c config.Config) any { return string(c.ServiceBusConnection) }, sharedSignature},
		{"REDIS_URL", "redis://:p%2Fw%23@[::1]:6379/15", func(c config.Config) any { return string(c.RedisURL) }, "redis://:p%2Fw%23@[::1]:6379/15"},
		{"REDIS_URL", "redis://redis", func(c config.Config) any { return string(c.RedisURL) }, "redis://redis"},
		{"REDIS_URL", "redis://host:6379?protocol=3", func(c config.Config) any { return string(c.RedisURL) }, "redis://host:6379?protocol=3"},
		{"REDIS_HOST", "redis\n", func(c config.Config) any { return c.RedisHost }, "redis"},
		{"REDIS_HOST", "[::1]:10000", func(c config.Config) any { return c.RedisHost }, "[::1]:10000"},
		{"REDIS_HOST", "10.0.0.4", func(c config.Config) any { return c.RedisHost }, "10.0.0.4"},
		{"COSMOS_ENDPOINT", "http://127.0.0.1:8081", func(c config.Config) any { return c.CosmosEndpoint }, "http://127.0.0.1:8081"},
		{"ServiceBusConnection__fullyQualifiedNamespace", "x.servicebus.windows.net", func(c config.Config) any { return c.ServiceBusNamespace }, "x.servicebus.windows.net"},
		{"ServiceBusConnection__fullyQualifiedNamespace", "127.0.0.1:5671", func(c config.Config) any { return c.ServiceBusNamespace }, "127.0.0.1:5671"},
		{"COSMOS_ENDPOINT", "https://x.documents.azure.com:443/", func(c config.Config) any { return c.CosmosEndpoint }, "https://x.documents.azure.com:443/"},
		{"COSMOS_KEY", "a2V5", func(c config.Config) any { return string(c.CosmosKey) }, "a2V5"},
		{"COSMOS_DATABASE", "presence", func(c config.Config) any { return c.CosmosDatabase }, "presence"},
		{"WEBSITE_SITE_NAME", "app-1", func(c config.Config) any { return c.App }, "app-1"},
		{"WEBSITE_INSTANCE_ID", "i-1", func(c config.Config) any { return c.Instance }, "i-1"},
		{"AzureWebJobs_ExpirationListener_Disabled", "True", func(c config.Config) any { return c.Listener }, false},
		{"AzureWebJobs_ExpirationListener_Disabled", "1", func(c config.Config) any { return c.Listener }, false},
		{"AzureWebJobs_ExpirationListener_Disabled", "false", func(c config.Config) any { return c.Listener }, true},
	} {
		c, err := fromEnv(map[string]string{tt.name: tt.value})
		if err != nil || tt.got(c) != tt.want {
			t.Errorf("%s=%s: %v, %v; want %v", tt.name, tt.value, tt.got(c), err, tt.want)
		}
	}
}

// hidden stands in values that are refused for a secret: no message may have it.
const hidden = "hunter2hunter2"

// wrong are values that are refused, with what the message says of them.
var wrong = []struct{ name, value, want string }{
	{"FUNCTIONS_CUSTOMHANDLER_PORT", "65536", "between 0 and 65535, and it is 65536"},
	{"FUNCTIONS_CUSTOMHANDLER_PORT", "-1", "between 0 and 65535"},
	{"FUNCTIONS_CUSTOMHANDLER_PORT", hidden, "whole number"},
	{"REDIS_PARTITIONS", "0", "between 1 and 1024, and it is 0"},
	{"REDIS_PARTITIONS", "1025", "between 1 and 1024"},
	{"REDIS_PARTITIONS", "16.0", "whole number"},
	{"LEASE_KEYS", hidden, "on or off"},
	{"REDIS_SET_NOTIFICATIONS", hidden, "on or off"},
	{"SESSION_TTL_SECONDS", "4", "between 5 and 3600, and it is 4"},
	{"SESSION_TTL_SECONDS", "3601", "between 5 and 3600"},
	{"SESSION_TTL_SECONDS", "45s", "leave units out"},
	{"SESSION_TTL_SECONDS", "99999999999999999999", "whole number"},
	{"EVENTS_QUEUE", "/events", "a name"},
	{"EVENTS_QUEUE", "my queue", "a name"},
	{"EVENTS_QUEUE", strings.Repeat("q", 260), "a name"},
	{"EVENTS_QUEUE", "Heartbeats", "another queue of this app"},
	{"EVENTS_QUEUE", "connectivity-events-rejected", "another queue of this app"},
	{"EVENTS_QUEUE", "Endpoint=sb://x/;SharedAccessKeyName=rule;SharedAccessKey=" + hidden, "goes to ServiceBusConnection"},
	{"EXPIRATION_ROUTES", "cart:*", "route 1 has no pattern or no queue"},
	{"EXPIRATION_ROUTES", "=carts", "route 1 has no pattern or no queue"},
	{"EXPIRATION_ROUTES", "a=q;cart:*=my " + hidden, "route 2 has a pattern over 256 bytes or no name of a queue"},
	{"EXPIRATION_ROUTES", strings.Repeat("a=q;", 33), "it has 33 routes"},
	{"EXPIRATION_ROUTES", "Endpoint=sb://x/;SharedAccessKeyName=rule;SharedAccessKey=" + hidden + "=", "route 1"},
	{"EVENT_TYPE_PREFIX", "com " + hidden, "a name"},
	{"EVENT_TYPE_PREFIX", strings.Repeat("p", 101), "a name"},
	{"MAX_DELIVERY_COUNT", "0", "between 1 and 2000"},
	{"MAX_DELIVERY_COUNT", "2001", "between 1 and 2000"},
	{"LOCAL_QUEUE_URL", "127.0.0.1:7071", "an http URL"},
	{"LOCAL_QUEUE_URL", "ftp://host/x", "an http URL"},
	{"LOCAL_QUEUE_URL", "http://", "it names no host"},
	{"LOCAL_QUEUE_URL", "http://ann:" + hidden + "@127.0.0.1:7071", "a user or password"},
	{"MAX_INSTANCES", "0", "between 1 and 1000"},
	{"MAX_INSTANCES", "many", "whole number"},
	{"REDIS_MAX_CLIENTS", "-1", "between 0 and 1000000"},
	{"REDIS_MAINTENANCE_EVENTS", "sometimes", "auto, on, off"},
	{"LOG_LEVEL", hidden, "debug, info, warn or error"},
	{"AzureWebJobs_ExpirationListener_Disabled", "perhaps", "true or false"},
	{"WEBSITE_SITE_NAME", "my app", "a name"},
	{"WEBSITE_INSTANCE_ID", "a b", "a name"},
	{"DATA_DIR", "redis://:" + hidden + "@host", "goes to REDIS_URL"},
	{"OTEL_EXPORTER_OTLP_ENDPOINT", "127.0.0.1:4318", "the http URL of a receiver"},
	{"OTEL_EXPORTER_OTLP_ENDPOINT", "https://ann:" + hidden + "@collector", "a user or password"},
	{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector/v1/traces?key=" + hidden, "a key goes to a setting of its own"},
	{"OTEL_EXPORTER_OTLP_HEADERS", hidden, "number 1 of them is not name=value"},
	{"OTEL_EXPORTER_OTLP_HEADERS", "x-api-key=" + hidden + "%zz", "write it as %25"},
	{"OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x api key=" + hidden, "one of them is no header"},
	{"OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-api-key=" + hidden + "%0A", "one of them is no header"},
	{"OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "leave units out"},
	{"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0", "between 1 and 600000"},
	{"OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "speaks no other"},
	{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "speaks no other"},
	{"OTEL_TRACES_EXPORTER", "zipkin", "one of otlp, console, none"},
	{"OTEL_TRACES_SAMPLER", "jaeger_remote", "one of parentbased_always_on"},
	{"OTEL_TRACES_SAMPLER_ARG", "10%", "a number between 0 and 1"},
	{"OTEL_TRACES_SAMPLER_ARG", "NaN", "a number between 0 and 1"},
	{"OTEL_SERVICE_NAME", strings.Repeat("s", 256), "at most 255 bytes"},
	{"OTEL_RESOURCE_ATTRIBUTES", "a=b," + hidden, "number 2 of them"},
	{"OTEL_SDK_DISABLED", "perhaps", "true or false"},

	{"REDIS_HOST", "redis://:" + hidden + "@host:6379", "goes to REDIS_URL"},
	{"REDIS_HOST", "https://name.redis.azure.net", "it is a URL"},
	{"REDIS_HOST", "name.redis.cache.windows.net:6380,password=" + hidden + ",ssl=True,abortConnect=False", "its host and port go to REDIS_HOST, its password to REDIS_ACCESS_KEY"},
	{"REDIS_HOST", "ann:" + hidden + "@host:6379", "more than a host and a port"},
	{"REDIS_HOST", ":" + hidden + "@host", "more than a host and a port"},
	{"REDIS_HOST", "host/" + hidden, "more than a host and a port"},
	{"REDIS_HOST", "host:" + hidden, "its port is no number"},
	{"REDIS_HOST", "host:", "its port is no number"},
	{"REDIS_HOST", "host:70000", "its port is no number"},
	{"REDIS_HOST", "k3J" + strings.Repeat(hidden, 3), "a key goes to REDIS_ACCESS_KEY"},
	{"REDIS_HOST", "aGVsbG8" + hidden + "+x", "a key goes to REDIS_ACCESS_KEY"},
	{"REDIS_HOST", sas + hidden, "goes to ServiceBusConnection"},
	{"REDIS_HOST", `"host:6379"`, "quotes"},
	{"REDIS_URL", "name.redis.azure.net:10000", "a host alone goes to REDIS_HOST"},
	{"REDIS_URL", "redis://:" + hidden + "@host:63x9/0", "its port is no number"},
	{"REDIS_URL", hidden, "no redis:// in front"},
	{"REDIS_URL", "http://:" + hidden + "@host", "another scheme"},
	{"REDIS_URL", "redis://:" + hidden + "/x#y@host:6379", "percent-encode"},
	{"REDIS_URL", "redis://:" + hidden + "#y@host:6379", "percent-encode"},
	{"REDIS_URL", "redis://:" + hidden + "%@host:6379", "percent-encode"},
	{"REDIS_URL", "redis://", "it names no host"},
	{"REDIS_URL", "redis://host:70000", "its port is no number"},
	{"REDIS_URL", "redis://host:6379/" + hidden, "no number of a database"},
	{"REDIS_URL", "redis://host:6379#" + hidden, "a # in it"},
	{"REDIS_URL", "redis://host:6379?password=" + hidden, "what follows the ?"},
	{"REDIS_URL", "name.redis.cache.windows.net:6380,password=" + hidden + ",ssl=True,abortConnect=False", "connection string for .NET"},
	{"REDIS_URL", "rediss://name.redis.cache.windows.net:6380,password=" + hidden, "mixed with a connection string for .NET"},
	{"REDIS_ACCESS_KEY", "name.redis.cache.windows.net:6380,password=" + hidden + ",ssl=True", "connection string for .NET"},
	{"REDIS_ACCESS_KEY", "rediss://:" + hidden + "@host", "goes to REDIS_URL"},
	{"ServiceBusConnection", "name.servicebus.windows.net", "goes to ServiceBusConnection__fullyQualifiedNamespace"},
	{"ServiceBusConnection", "sb://name.servicebus.windows.net/", "goes to ServiceBusConnection__fullyQualifiedNamespace"},
	{"ServiceBusConnection", "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=" + hidden + ";EndpointSuffix=core.windows.net", "goes to AzureWebJobsStorage"},
	{"ServiceBusConnection", "AccountEndpoint=https://x.documents.azure.com:443/;AccountKey=" + hidden, "its AccountKey to COSMOS_KEY"},
	{"ServiceBusConnection", "SharedAccessKeyName=rule;SharedAccessKey=" + hidden, "it has no Endpoint"},
	{"ServiceBusConnection", "Endpoint=https://x/;SharedAccessKeyName=rule;SharedAccessKey=" + hidden, "its Endpoint is not sb://"},
	{"ServiceBusConnection", "Endpoint=sb://x/;SharedAccessKey=" + hidden, "no SharedAccessKeyName with SharedAccessKey"},
	{"ServiceBusConnection", "Endpoint=sb://x/;SharedAccessKeyName=rule", "no SharedAccessKeyName with SharedAccessKey"},
	{"ServiceBusConnection", sas + hidden + ";EntityPath=heartbeats", "that of another queue than EVENTS_QUEUE"},
	{"ServiceBusConnection", sas + hidden + ";UseDevelopmentEmulator=perhaps", "not true or false"},
	{"ServiceBusConnection", sas + ";" + hidden, "not name=value"},
	{"ServiceBusConnection", sas + "\n" + hidden, "a line end"},
	{"ServiceBusConnection", "'" + sas + hidden + "'", "quotes"},
	{"ServiceBusConnection__fullyQualifiedNamespace", "sb://name.servicebus.windows.net/", "it has sb:// in front"},
	{"ServiceBusConnection__fullyQualifiedNamespace", sas + hidden, "goes to ServiceBusConnection"},
	{"ServiceBusConnection__fullyQualifiedNamespace", "https://name.servicebus.windows.net:443/", "it is a URL"},
	{"ServiceBusConnection__fullyQualifiedNamespace", "name.servicebus.windows.net:" + hidden, "no name of a host"},
	{"ServiceBusConnection__fullyQualifiedNamespace", "name", "add .servicebus.windows.net"},
	{"ServiceBusConnection__fullyQualifiedNamespace", "name.servicebus.windows.net/" + hidden, "no name of a host"},
	{"COSMOS_ENDPOINT", "x.documents.azure.com", "it has no https:// in front"},
	{"COSMOS_ENDPOINT", "AccountEndpoint=https://x.documents.azure.com:443/;AccountKey=" + hidden + "==;", "its AccountEndpoint goes to COSMOS_ENDPOINT, its AccountKey to COSMOS_KEY"},
	{"COSMOS_ENDPOINT", hidden + "/+==", "the http URL"},
	{"COSMOS_ENDPOINT", "https://ann:" + hidden + "@x.documents.azure.com", "a user or password"},
	{"COSMOS_ENDPOINT", "https://x.documents.azure.com/?key=" + hidden, "more than a host and a port"},
	{"COSMOS_ENDPOINT", "https://x.documents.azure.com/dbs/connectivity", "more than a host and a port"},
	{"COSMOS_KEY", "not base64 " + hidden, "it is not base64"},
	{"COSMOS_KEY", "AccountEndpoint=https://x.documents.azure.com:443/;AccountKey=" + hidden + "==;", "its AccountKey to COSMOS_KEY"},
	{"COSMOS_KEY", "https://x.documents.azure.com:443/", "goes to COSMOS_ENDPOINT"},
	{"COSMOS_DATABASE", "a/b", "a name"},
	{"COSMOS_DATABASE", "https://x.documents.azure.com:443/", "goes to COSMOS_ENDPOINT"},
}

// TestWrongSettings: the message names the variable, what it must be and an example that is taken, and has nothing of
// the value in it.
func TestWrongSettings(t *testing.T) {
	t.Parallel()
	for _, tt := range wrong {
		_, problems := fromEnv(map[string]string{tt.name: tt.value})
		if len(problems) != 1 || problems[0].Setting != tt.name || problems[0].Part == "" {
			t.Errorf("%s=%s: %+v", tt.name, tt.value, problems)
			continue
		}
		text := problems.String()
		if !strings.HasPrefix(text, tt.name+" must be ") && !strings.HasPrefix(text, tt.name+" cannot be used: ") || !strings.Contains(text, tt.want) || strings.Count(text, "\n") > 0 {
			t.Errorf("%s=%s: %s, want %q", tt.name, tt.value, text, tt.want)
		}
		if strings.Contains(text, hidden) {
			t.Errorf("%s shows its value: %s", tt.name, text)
		}
		example := problems[0].Example
		if example == "" {
			continue
		}
		if strings.Contains(text, " must be ") && !strings.HasSuffix(text, ", for example "+tt.name+"="+example) {
			t.Errorf("%s=%s: %s has no example", tt.name, tt.value, text)
		}
		if _, problems := fromEnv(map[string]string{tt.name: example}); problems != nil {
			t.Errorf("the example of %s is refused: %v", tt.name, problems)
		}
	}
}

// TestValuesThatNoSettingCanHave: what went wrong on the way into the environment is named as that for each setting,
// and what it was has no effect.
func TestValuesThatNoSettingCanHave(t *testing.T) {
	t.Parallel()
	usual, _ := fromEnv(nil)
	for name, tt := range map[string]struct{ value, want string }{
		"Key Vault":         {"@Microsoft.KeyVault(SecretUri=https://vault.vault.azure.net/secrets/" + hidden + "/)", `--role "Key Vault Secrets User"`},
		"small letters":     {"@microsoft.keyvault(SecretUri=https://vault.vault.azure.net/secrets/" + hidden + "/)", `--role "Key Vault Secrets User"`},
		"App Configuration": {"@Microsoft.AppConfiguration(Endpoint=https://x.azconfig.io; Key=" + hidden + ")", "the right to read its store"},
		"quotes":            {`"` + hidden + `"`, "quotes"},
		"single quotes":     {"'" + hidden + "'", "quotes"},
		"shell":             {"${" + hidden + "}", "a placeholder"},
		"pipeline":          {"$(" + hidden + ")", "a placeholder"},
		"app setting":       {"%" + hidden + "%", "a placeholder"},
		"template":          {"{{ " + hidden + " }}", "a placeholder"},
		"tokens":            {"#{" + hidden + "}#", "a placeholder"},
		"word to fill in":   {"<" + hidden + ">", "a placeholder"},
		"two lines":         {hidden + "\r\n" + hidden, "a line end"},
		"not UTF-8":         {hidden + "\xff", "control character"},
		"far too long":      {strings.Repeat(hidden, 2000), "28000 bytes"},
	} {
		env := map[string]string{}
		for _, setting := range config.Names() {
			env[setting] = tt.value
		}
		c, problems := fromEnv(env)
		if c != usual || len(problems) != len(env) {
			t.Errorf("%s: %d of %d settings are refused: %+v", name, len(problems), len(env), c)
		}
		for _, p := range problems {
			if !strings.HasPrefix(p.Text, p.Setting+" cannot be used: ") || !strings.Contains(p.Text, tt.want) || strings.Contains(p.Text, hidden) {
				t.Errorf("%s: %s", name, p.Text)
			}
		}
	}
}

// TestAllProblemsAreToldAtOnce, each setting once.
func TestAllProblemsAreToldAtOnce(t *testing.T) {
	t.Parallel()
	env := map[string]string{}
	for _, tt := range wrong {
		env[tt.name] = tt.value
	}
	if len(env) != len(config.Names()) {
		t.Errorf("%d of %d settings have a wrong value in this test", len(env), len(config.Names()))
	}
	usual, _ := fromEnv(nil)
	c, problems := fromEnv(env)
	if c != usual {
		t.Errorf("wrong settings have an effect: %+v", c)
	}
	told := map[string]bool{}
	for _, p := range problems {
		if told[p.Setting] {
			t.Errorf("%s is told twice", p.Setting)
		}
		told[p.Setting] = true
	}
	if len(told) != len(env) {
		t.Errorf("%d of %d are told: %v", len(told), len(env), problems)
	}
}

// TestProblemsOfAPart: a part is held up by its own settings alone, and not by those whose default loses nothing.
func TestProblemsOfAPart(t *testing.T) {
	t.Parallel()
	_, problems := fromEnv(map[string]string{
		"COSMOS_ENDPOINT": "https://x.documents.azure.com", "COSMOS_KEY": "@Microsoft.KeyVault(x)", "MAX_INSTANCES": "many", "EVENTS_QUEUE": "my queue", "EVENT_TYPE_PREFIX": "my prefix", "LOG_LEVEL": "loud",
	})
	for part, want := range map[config.Part]struct {
		unusable []string
		minor    int
	}{
		config.Process:  {nil, 1},
		config.Redis:    {nil, 1},
		config.Queue:    {[]string{"EVENTS_QUEUE", "EVENT_TYPE_PREFIX"}, 0},
		config.EventLog: {[]string{"COSMOS_KEY"}, 0},
		config.Listener: {nil, 0},
	} {
		unusable, minor := problems.Unusable(part), problems.Minor(part)
		if (unusable != nil) != (want.unusable != nil) || len(minor) != want.minor {
			t.Errorf("%s: %v, %q", part, unusable, minor)
		}
		for _, name := range want.unusable {
			if !strings.Contains(unusable.Error(), name) {
				t.Errorf("%s: %v does not name %s", part, unusable, name)
			}
		}
	}
}

// TestProblemsOfUnusedSettings: what another setting goes before holds nothing up.
func TestProblemsOfUnusedSettings(t *testing.T) {
	t.Parallel()
	const reference = "@Microsoft.KeyVault(x)"
	for _, tt := range []struct {
		env    map[string]string
		part   config.Part
		usable bool
	}{
		{map[string]string{"REDIS_ACCESS_KEY": reference, "REDIS_HOST": "host"}, config.Redis, false},
		{map[string]string{"REDIS_ACCESS_KEY": reference, "REDIS_URL": "redis://host"}, config.Redis, true},
		{map[string]string{"REDIS_HOST": "redis://host", "REDIS_URL": "redis://host"}, config.Redis, true},
		{map[string]string{"REDIS_HOST": "redis://host", "REDIS_URL": reference}, config.Redis, false},
		{map[string]string{"ServiceBusConnection__fullyQualifiedNamespace": reference, "ServiceBusConnection": sas}, config.Queue, true},
		{map[string]string{"ServiceBusConnection__fullyQualifiedNamespace": "x.servicebus.windows.net", "ServiceBusConnection": reference}, config.Queue, false},
		{map[string]string{"LOCAL_QUEUE_URL": reference, "ServiceBusConnection": sas}, config.Queue, true},
		{map[string]string{"COSMOS_KEY": reference, "COSMOS_ENDPOINT": "https://x.documents.azure.com"}, config.EventLog, false},
		{map[string]string{"COSMOS_KEY": reference, "COSMOS_ENDPOINT": reference}, config.EventLog, false},
		{map[string]string{"COSMOS_KEY": reference}, config.EventLog, true},
		{map[string]string{"DATA_DIR": reference}, config.EventLog, false},
		{map[string]string{"DATA_DIR": reference, "COSMOS_ENDPOINT": "https://x.documents.azure.com"}, config.EventLog, true},
	} {
		_, problems := fromEnv(tt.env)
		unusable, minor := problems.Unusable(tt.part), problems.Minor(tt.part)
		if (unusable == nil) != tt.usable || tt.usable && len(minor) == 0 {
			t.Errorf("%v: %v, %q", tt.env, unusable, minor)
		}
	}
}

func TestIgnoredSettings(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		env  map[string]string
		want string
	}{
		{map[string]string{"REDIS_URL": "redis://host", "REDIS_HOST": "host"}, "REDIS_HOST"},
		{map[string]string{"REDIS_URL": "redis://host", "REDIS_ACCESS_KEY": hidden}, "REDIS_ACCESS_KEY"},
		{map[string]string{"ServiceBusConnection": sas, "ServiceBusConnection__fullyQualifiedNamespace": "x.servicebus.windows.net"}, "ServiceBusConnection__fullyQualifiedNamespace"},
		{map[string]string{"COSMOS_KEY": "a2V5"}, "COSMOS_KEY"},
		{map[string]string{"REDIS_HOST": "host", "REDIS_ACCESS_KEY": hidden, "COSMOS_ENDPOINT": "https://x.documents.azure.com", "COSMOS_KEY": "a2V5"}, ""},
		{nil, ""},
	} {
		c, problems := fromEnv(tt.env)
		if problems != nil {
			t.Errorf("%v: %v", tt.env, problems)
		}
		ignored := c.Ignored(problems)
		if (len(ignored) == 1) != (tt.want != "") || len(ignored) == 1 && (ignored[0].Setting != tt.want || !ignored[0].Minor || strings.Contains(ignored[0].Text, hidden)) {
			t.Errorf("%v: %+v, want %s", tt.env, ignored, tt.want)
		}
	}
}

// TestSettingsBesideWrongOnes: what goes with a setting that is wrong is not told to be of no use.
func TestSettingsBesideWrongOnes(t *testing.T) {
	t.Parallel()
	for _, env := range []map[string]string{
		{"REDIS_HOST": "host:port", "REDIS_ACCESS_KEY": hidden},
		{"COSMOS_ENDPOINT": "name", "COSMOS_KEY": "a2V5"},
	} {
		c, problems := fromEnv(env)
		if ignored := c.Ignored(problems); len(problems) != 1 || ignored != nil {
			t.Errorf("%v: %v, and without effect: %v", env, problems, ignored)
		}
	}
}

func TestMisspeltSettings(t *testing.T) {
	t.Parallel()
	for name, meant := range map[string]string{
		"REDIS_PARTITION": "REDIS_PARTITIONS", "SESSION_TTL": "SESSION_TTL_SECONDS", "COSMOS_ENDPOINTS": "COSMOS_ENDPOINT", "redis_url": "REDIS_URL",
		"Redis__Host": "REDIS_HOST", "REDIS_URI": "REDIS_URL", "REDIS_ACESS_KEY": "REDIS_ACCESS_KEY", "REDIS_PASSWORD": "REDIS_ACCESS_KEY", "EVENT_QUEUE": "EVENTS_QUEUE",
		"EVENTS_QUEUES": "EVENTS_QUEUE", "SERVICEBUSCONNECTION": "ServiceBusConnection", "ServiceBusConnectionString": "",
		"ServiceBusConnection:fullyQualifiedNamespace": "ServiceBusConnection__fullyQualifiedNamespace", "ServiceBusConnection_fullyQualifiedNamespace": "ServiceBusConnection__fullyQualifiedNamespace",
		"AzureWebJobs.ExpirationListener.Disabled": "AzureWebJobs_ExpirationListener_Disabled", "AzureWebJobs_ExpirationListner_Disabled": "AzureWebJobs_ExpirationListener_Disabled",
		"MAX_INSTANCE": "MAX_INSTANCES", "EXPIRATION_ROUTE": "EXPIRATION_ROUTES", "LEASE_KEY": "LEASE_KEYS", "MAX_DELIVERY": "MAX_DELIVERY_COUNT",
		// What belongs to others, or to nobody we know.
		"PATH": "", "HOME": "", "HOSTNAME": "", "REDIS_PORT": "", "REDIS_PORT_6379_TCP_ADDR": "", "REDIS_SERVICE_HOST": "", "AzureWebJobs_Heartbeat_Disabled": "",
		"AzureWebJobsStorage": "", "ServiceBusConnection__clientId": "", "WEBSITE_SITE_NAMES": "", "FUNCTIONS_WORKER_RUNTIME": "", "AZURE_CLIENT_ID": "", "LOG": "",
		"DATA": "", "COSMOS_TIMEOUT": "", "": "", strings.Repeat("REDIS_", 10000): "",
	} {
		warnings := config.Misspelt([]string{name + "=" + hidden})
		if (len(warnings) == 1) != (meant != "") || len(warnings) == 1 && (!strings.HasPrefix(warnings[0], name+" is no setting") || !strings.Contains(warnings[0], "was "+meant+" meant")) {
			t.Errorf("%.60s: %q, want %q", name, warnings, meant)
		}
		if strings.Contains(strings.Join(warnings, ""), hidden) {
			t.Errorf("a value is shown: %q", warnings)
		}
	}
	var right []string
	for _, name := range config.Names() {
		right = append(right, name+"=x")
	}
	if warnings := config.Misspelt(right); warnings != nil {
		t.Errorf("the settings themselves: %q", warnings)
	}
}

// TestSecretsAreNeverPrinted, however a configuration is written out.
func TestSecretsAreNeverPrinted(t *testing.T) {
	t.Parallel()
	c, problems := fromEnv(map[string]string{
		"REDIS_URL": "redis://user:hunter2@host:6379/0", "REDIS_ACCESS_KEY": "hunter2", "ServiceBusConnection": sas + "hunter2",
		"COSMOS_ENDPOINT": "https://x.documents.azure.com/", "COSMOS_KEY": "hunter2=",
	})
	if problems != nil {
		t.Fatal(problems)
	}
	var log strings.Builder
	slog.New(slog.NewJSONHandler(&log, nil)).Info("started", "config", c, "url", c.RedisURL)
	slog.New(slog.NewTextHandler(&log, nil)).Info("started", "config", c, "url", c.RedisURL)
	asJSON, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for how, text := range map[string]string{
		"%v": fmt.Sprintf("%v", c), "%+v": fmt.Sprintf("%+v", c), "%#v": fmt.Sprintf("%#v", c), "%s": fmt.Sprintf("%4s", c.RedisURL), "%q": fmt.Sprintf("%q", c.RedisURL),
		"%x": fmt.Sprintf("%x", c.RedisURL), "log": log.String(), "JSON": string(asJSON),
	} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("%s shows the secret: %s", how, text)
		}
	}
	if string(c.RedisURL) != "redis://user:hunter2@host:6379/0" {
		t.Error("the secret itself is lost")
	}
}

// TestTraced: there are traces where a receiver is named, unless another setting says no or one of them is wrong.
func TestTraced(t *testing.T) {
	t.Parallel()
	const receiver = "http://127.0.0.1:4318"
	for _, tt := range []struct {
		env  map[string]string
		want bool
	}{
		{map[string]string{}, false},
		{map[string]string{"OTEL_TRACES_EXPORTER": "otlp"}, false},
		{map[string]string{"OTEL_TRACES_EXPORTER": "console"}, true},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": receiver}, true},
		{map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": receiver}, true},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": receiver, "OTEL_TRACES_EXPORTER": "none"}, false},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": receiver, "OTEL_SDK_DISABLED": "true"}, false},
		{map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": receiver, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, false},
		{map[string]string{"OTEL_TRACES_EXPORTER": "console", "OTEL_TRACES_SAMPLER_ARG": "many"}, false},
	} {
		if c, _ := fromEnv(tt.env); c.Traced() != tt.want {
			t.Errorf("%v: traced is %v", tt.env, c.Traced())
		}
	}
	c, problems := fromEnv(map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": receiver, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://traces/v1/traces", "OTEL_EXPORTER_OTLP_HEADERS": "a=1",
		"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "b=2", "OTEL_EXPORTER_OTLP_TIMEOUT": "1", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2",
	})
	if problems != nil || c.TracesEndpoint != "https://traces/v1/traces" || c.TracesHeaders != "b=2" || c.TracesTimeout != 2*time.Millisecond {
		t.Errorf("what is for traces alone goes first: %+v, %v", c, problems)
	}
}
