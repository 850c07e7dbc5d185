// Package config reads the settings: environment variables, each named once here. All that is wrong is told
// together, each with the part of the app that cannot run without it and with an example that is right. Nobody can
// know what was pasted into the wrong setting, so no message has any of a value in it, but for whole numbers.
package config

import (
	"log/slog"
	"os"
	"strings"
	"time"

	"userconnectivity/handler/presence"
	"userconnectivity/handler/queue"
)

// Secret is a setting that is never printed.
type Secret string

// String hides the secret.
func (Secret) String() string { return "[redacted]" }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return "[redacted]" }

// LogValue hides the secret in logs.
func (Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalText hides the secret in JSON, and so in a log of the whole Config.
func (Secret) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// Config is every setting of the handler.
type Config struct {
	// Port is where the handler listens, on 127.0.0.1 (FUNCTIONS_CUSTOMHANDLER_PORT, set by the host).
	Port int
	// RedisURL is redis://[user:password@]host:port/db, or rediss:// for TLS (REDIS_URL).
	RedisURL Secret
	// RedisHost is host or host:port over TLS (REDIS_HOST), used when there is no RedisURL. The password is
	// RedisAccessKey (REDIS_ACCESS_KEY) or, without one, the Entra token of the app's identity.
	RedisHost      string
	RedisAccessKey Secret
	// MaxInstances is how many processes of all apps may run at once (MAX_INSTANCES, 1 to 1000, default 20), and
	// RedisMaxClients the connections that Redis allows (REDIS_MAX_CLIENTS, default 0: what the server tells).
	MaxInstances, RedisMaxClients int
	// MaintenanceEvents says whether a process without the listener subscribes to Azure's maintenance messages,
	// for one connection more (REDIS_MAINTENANCE_EVENTS: auto, on, off; default auto: when the budget allows it).
	MaintenanceEvents string
	// SetNotifications allows to switch expired events on at the server, where they are off (REDIS_SET_NOTIFICATIONS, on
	// or off, default on).
	SetNotifications bool
	// Partitions of the state (REDIS_PARTITIONS, 1 to 1024, default 16). It cannot be changed later.
	Partitions int
	// LeaseKeys keeps a key with a time to live for each session (LEASE_KEYS, on or off, default on).
	LeaseKeys bool
	// SessionTTL is the ttl of beats that name none (SESSION_TTL_SECONDS, 5 to 3600, default 45).
	SessionTTL time.Duration
	// EventsQueue is the queue or topic that events are sent to (EVENTS_QUEUE, default connectivity-events).
	EventsQueue string
	// ExpirationRoutes are the queues of other apps' keys that expire (EXPIRATION_ROUTES, default none).
	ExpirationRoutes queue.Routes
	// EventTypePrefix is in front of each CloudEvents type (EVENT_TYPE_PREFIX, default userconnectivity.).
	EventTypePrefix string
	// MaxDelivery is the max delivery count of the queues (MAX_DELIVERY_COUNT, 1 to 2000, default 600).
	MaxDelivery int
	// ServiceBusConnection is a connection string (ServiceBusConnection), and ServiceBusNamespace a host name for
	// the app's identity (ServiceBusConnection__fullyQualifiedNamespace). With neither, LocalQueueURL is used.
	ServiceBusConnection Secret
	ServiceBusNamespace  string
	// CosmosEndpoint is the account's URL (COSMOS_ENDPOINT); with none the event log is embedded. CosmosKey is its
	// key (COSMOS_KEY), none for the app's identity. CosmosDatabase is COSMOS_DATABASE, default connectivity.
	CosmosEndpoint string
	CosmosKey      Secret
	CosmosDatabase string
	// LocalQueueURL is the embedded broker of the local host (LOCAL_QUEUE_URL).
	LocalQueueURL string
	// DataDir is where the embedded event log lives (DATA_DIR, default .data).
	DataDir string
	// LogLevel is the least level that is logged (LOG_LEVEL: debug, info, warn, error; default info).
	LogLevel slog.Level
	// App and Instance name this process in Redis, in events and in logs (WEBSITE_SITE_NAME, WEBSITE_INSTANCE_ID).
	App, Instance string
	// TracesEndpoint is the URL that traces are posted to, with its path (OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, or
	// OTEL_EXPORTER_OTLP_ENDPOINT and /v1/traces); "" sends none. Nor does TracesExporter, if it is none
	// (OTEL_TRACES_EXPORTER: otlp, console, none; default otlp), or if OTEL_SDK_DISABLED is true.
	TracesEndpoint, TracesExporter string
	// TracesHeaders go with each call, as name=value, with commas between (OTEL_EXPORTER_OTLP_TRACES_HEADERS, or
	// OTEL_EXPORTER_OTLP_HEADERS). TracesTimeout bounds a batch (OTEL_EXPORTER_OTLP_TRACES_TIMEOUT, or
	// OTEL_EXPORTER_OTLP_TIMEOUT, in ms, 1 to 600000, default 10000).
	TracesHeaders Secret
	TracesTimeout time.Duration
	// TracesSampler and TracesRatio choose the traces (OTEL_TRACES_SAMPLER, default parentbased_always_on, and
	// OTEL_TRACES_SAMPLER_ARG, 0 to 1, default 1).
	TracesSampler string
	TracesRatio   float64
	// TracesService names this app in traces (OTEL_SERVICE_NAME; default service.name of the attributes, or App), and
	// TracesAttributes are told beside it (OTEL_RESOURCE_ATTRIBUTES, as name=value with commas between).
	TracesService, TracesAttributes string
	// Listener runs the expiration listener's loop, unless AzureWebJobs_ExpirationListener_Disabled is true.
	Listener bool
}

// FromEnv reads the settings with lookup, such as os.LookupEnv, and returns what is wrong with them, nil for nothing.
// A setting that is wrong, or has only blanks, is in the Config as if it were not set.
func FromEnv(lookup func(string) (string, bool)) (Config, Problems) {
	r := reader{lookup: lookup}
	events := r.text(Queue, "EVENTS_QUEUE", queue.ConnectivityEvents, eventsQueue)
	account := r.text(EventLog, "COSMOS_ENDPOINT", "", cosmosEndpoint)
	c := Config{
		Port: r.integer(Process, "FUNCTIONS_CUSTOMHANDLER_PORT", 8080, 0, 65535),

		RedisURL:         Secret(r.text(Redis, "REDIS_URL", "", redisURL)),
		RedisHost:        r.text(Redis, "REDIS_HOST", "", redisHost),
		RedisAccessKey:   Secret(r.text(Redis, "REDIS_ACCESS_KEY", "", accessKey)),
		Partitions:       r.integer(Redis, "REDIS_PARTITIONS", 16, 1, 1024),
		SetNotifications: r.choice(Redis, "REDIS_SET_NOTIFICATIONS", "on", "off") == "on",
		LeaseKeys:        r.choice(Redis, "LEASE_KEYS", "on", "off") == "on",
		SessionTTL:       r.seconds(Redis, "SESSION_TTL_SECONDS", presence.DefaultTTL, presence.MinTTL, presence.MaxTTL),

		EventsQueue:          events,
		ExpirationRoutes:     r.routes("EXPIRATION_ROUTES"),
		EventTypePrefix:      r.text(Queue, "EVENT_TYPE_PREFIX", "userconnectivity.", typePrefix),
		ServiceBusConnection: Secret(r.text(Queue, "ServiceBusConnection", "", connectionString(events))),
		ServiceBusNamespace:  r.text(Queue, "ServiceBusConnection__fullyQualifiedNamespace", "", namespace),
		LocalQueueURL:        r.text(Queue, "LOCAL_QUEUE_URL", "", localQueueURL),

		CosmosEndpoint: account,
		CosmosKey:      Secret(r.text(EventLog, "COSMOS_KEY", "", cosmosKey(account))),
		CosmosDatabase: r.text(EventLog, "COSMOS_DATABASE", "connectivity", databaseName),
		DataDir:        r.text(EventLog, "DATA_DIR", ".data", folder),
	}
	// What goes behind another setting, and is not used, holds nothing up.
	r.demote(c.RedisURL != "", "REDIS_HOST", "REDIS_ACCESS_KEY")
	r.demote(c.ServiceBusConnection != "", "ServiceBusConnection__fullyQualifiedNamespace")
	r.demote(c.ServiceBusConnection != "" || c.ServiceBusNamespace != "", "LOCAL_QUEUE_URL")
	r.demote(account != "", "DATA_DIR")
	r.demote(account == "" && !r.problems.Has("COSMOS_ENDPOINT"), "COSMOS_KEY", "COSMOS_DATABASE")
	r.minor = true // what follows has a default that loses nothing
	c.MaxInstances = r.integer(Redis, "MAX_INSTANCES", 20, 1, 1000)
	c.RedisMaxClients = r.integer(Redis, "REDIS_MAX_CLIENTS", 0, 0, 1_000_000)
	c.MaintenanceEvents = r.choice(Redis, "REDIS_MAINTENANCE_EVENTS", "auto", "on", "off")
	c.MaxDelivery = r.integer(Queue, "MAX_DELIVERY_COUNT", queue.MaxDeliveryCount, 1, 2000)
	c.Listener = !r.boolean(Listener, "AzureWebJobs_ExpirationListener_Disabled", false)
	c.LogLevel = r.level("LOG_LEVEL")
	c.App = r.text(Process, "WEBSITE_SITE_NAME", "user-connectivity", appName)
	c.Instance = r.text(Process, "WEBSITE_INSTANCE_ID", hostname(), instanceName)
	r.traces(&c)
	return c, r.problems
}

// Lookup returns what looks variables up in an environment ("NAME=value"), as os.LookupEnv does.
func Lookup(environ []string) func(name string) (string, bool) {
	variables := make(map[string]string, len(environ))
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		variables[name] = value
	}
	return func(name string) (string, bool) {
		value, ok := variables[name]
		return value, ok
	}
}

// Names returns the names of all settings, in the order in which they are read.
func Names() []string {
	var names []string
	FromEnv(func(name string) (string, bool) { names = append(names, name); return "", false })
	return names
}

// Ignored returns the settings that have no effect beside others or without them, unless it is known that those are wrong.
func (c Config) Ignored(wrong Problems) Problems {
	var ignored Problems
	add := func(set bool, part Part, setting, why string) {
		if set {
			ignored = append(ignored, Problem{Setting: setting, Part: part, Text: setting + " has no effect: " + why, Minor: true})
		}
	}
	add(c.RedisHost != "" && c.RedisURL != "", Redis, "REDIS_HOST", "REDIS_URL is set, too, and goes first; remove one of both")
	add(c.RedisAccessKey != "" && c.RedisHost == "" && !wrong.Has("REDIS_HOST"), Redis, "REDIS_ACCESS_KEY", "it is the key for REDIS_HOST, which is not set")
	add(c.ServiceBusNamespace != "" && c.ServiceBusConnection != "", Queue, "ServiceBusConnection__fullyQualifiedNamespace",
		"ServiceBusConnection is set, too, and goes first; remove one of both")
	add(c.CosmosKey != "" && c.CosmosEndpoint == "" && !wrong.Has("COSMOS_ENDPOINT"), EventLog, "COSMOS_KEY",
		"COSMOS_ENDPOINT is not set, so that the event log is a file in DATA_DIR; set COSMOS_ENDPOINT=https://name.documents.azure.com:443/")
	return ignored
}

func hostname() string {
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "localhost"
}
