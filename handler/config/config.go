// Package config reads the settings: environment variables, each named once here. All that is wrong is
// reported together, with an example; no secret is ever part of a message.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
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
	// MaxDelivery is the max delivery count of the queues (MAX_DELIVERY_COUNT, 1 to 2000, default 10).
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
	// Listener runs the expiration listener's loop, unless AzureWebJobs_ExpirationListener_Disabled is true.
	Listener bool
}

// FromEnv reads the settings with lookup, such as os.LookupEnv.
func FromEnv(lookup func(string) (string, bool)) (Config, error) {
	r := reader{lookup: lookup}
	c := Config{
		Port:                 r.integer("FUNCTIONS_CUSTOMHANDLER_PORT", 8080, 0, 65535),
		RedisURL:             Secret(r.text("REDIS_URL", "")),
		RedisHost:            r.text("REDIS_HOST", ""),
		RedisAccessKey:       Secret(r.text("REDIS_ACCESS_KEY", "")),
		MaxInstances:         r.integer("MAX_INSTANCES", 20, 1, 1000),
		RedisMaxClients:      r.integer("REDIS_MAX_CLIENTS", 0, 0, 1_000_000),
		MaintenanceEvents:    r.choice("REDIS_MAINTENANCE_EVENTS", "auto", "on", "off"),
		Partitions:           r.integer("REDIS_PARTITIONS", 16, 1, 1024),
		LeaseKeys:            r.onOff("LEASE_KEYS", true),
		SessionTTL:           r.seconds("SESSION_TTL_SECONDS", presence.DefaultTTL, presence.MinTTL, presence.MaxTTL),
		EventsQueue:          r.matching("EVENTS_QUEUE", queue.ConnectivityEvents, queue.Name, "connectivity-events"),
		ExpirationRoutes:     r.routes("EXPIRATION_ROUTES"),
		EventTypePrefix:      r.matching("EVENT_TYPE_PREFIX", "userconnectivity.", typePrefix, "com.example.presence."),
		MaxDelivery:          r.integer("MAX_DELIVERY_COUNT", 10, 1, 2000),
		ServiceBusConnection: Secret(r.text("ServiceBusConnection", "")),
		ServiceBusNamespace:  r.text("ServiceBusConnection__fullyQualifiedNamespace", ""),
		CosmosEndpoint:       r.url("COSMOS_ENDPOINT", "https://name.documents.azure.com:443/"),
		CosmosKey:            Secret(r.text("COSMOS_KEY", "")),
		CosmosDatabase:       r.matching("COSMOS_DATABASE", "connectivity", databaseName, "connectivity"),
		LocalQueueURL:        r.url("LOCAL_QUEUE_URL", "http://127.0.0.1:7071/local/queues"),
		DataDir:              r.text("DATA_DIR", ".data"),
		LogLevel:             r.level("LOG_LEVEL"),
		App:                  r.text("WEBSITE_SITE_NAME", "user-connectivity"),
		Instance:             r.text("WEBSITE_INSTANCE_ID", hostname()),
		Listener:             !r.boolean("AzureWebJobs_ExpirationListener_Disabled", false),
	}
	if err := errors.Join(r.problems...); err != nil {
		return Config{}, fmt.Errorf("settings: %w", err)
	}
	return c, nil
}

var (
	// databaseName is what Cosmos DB takes.
	databaseName = regexp.MustCompile(`^[^/\\?#]{1,255}$`)
	// typePrefix is a reverse-DNS prefix, as CloudEvents asks for.
	typePrefix = regexp.MustCompile(`^[A-Za-z0-9._-]{0,100}$`)
)

func hostname() string {
	if name, err := os.Hostname(); err == nil {
		return name
	}
	return "localhost"
}

// reader reads settings and collects what is wrong with them.
type reader struct {
	lookup   func(string) (string, bool)
	problems []error
}

func (r *reader) text(name, usual string) string {
	if v, ok := r.lookup(name); ok && strings.TrimSpace(v) != "" {
		return strings.TrimSpace(v)
	}
	return usual
}

func (r *reader) wrong(name, want, example string) {
	r.problems = append(r.problems, fmt.Errorf("%s must be %s, for example %s=%s", name, want, name, example))
}

func (r *reader) integer(name string, usual, least, most int) int {
	text := r.text(name, strconv.Itoa(usual))
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		r.wrong(name, fmt.Sprintf("a whole number between %d and %d", least, most), strconv.Itoa(usual))
		return usual
	}
	return n
}

func (r *reader) seconds(name string, usual, least, most time.Duration) time.Duration {
	return time.Duration(r.integer(name, int(usual/time.Second), int(least/time.Second), int(most/time.Second))) * time.Second
}

func (r *reader) onOff(name string, usual bool) bool {
	switch strings.ToLower(r.text(name, map[bool]string{true: "on", false: "off"}[usual])) {
	case "on":
		return true
	case "off":
		return false
	}
	r.wrong(name, "on or off", "on")
	return usual
}

func (r *reader) boolean(name string, usual bool) bool {
	v, err := strconv.ParseBool(strings.ToLower(r.text(name, strconv.FormatBool(usual))))
	if err != nil {
		r.wrong(name, "true or false", "true")
		return usual
	}
	return v
}

func (r *reader) matching(name, usual string, pattern *regexp.Regexp, example string) string {
	v := r.text(name, usual)
	if !pattern.MatchString(v) {
		r.wrong(name, "a name that matches "+pattern.String(), example)
		return usual
	}
	return v
}

func (r *reader) routes(name string) queue.Routes {
	routes, err := queue.ParseRoutes(r.text(name, ""))
	if err != nil {
		r.wrong(name, fmt.Sprintf("pattern=queue, several separated by semicolons (%v)", err), "cart:*=carts;lock:??=locks")
	}
	return routes
}

func (r *reader) choice(name string, choices ...string) string {
	v := strings.ToLower(r.text(name, choices[0]))
	if !slices.Contains(choices, v) {
		r.wrong(name, "one of "+strings.Join(choices, ", "), choices[0])
		return choices[0]
	}
	return v
}

func (r *reader) url(name, example string) string {
	v := r.text(name, "")
	if v == "" {
		return ""
	}
	if u, err := url.Parse(v); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		r.wrong(name, "an http URL", example)
		return ""
	}
	return v
}

func (r *reader) level(name string) slog.Level {
	var l slog.Level
	if err := l.UnmarshalText([]byte(r.text(name, "info"))); err != nil {
		r.wrong(name, "debug, info, warn or error", "info")
	}
	return l
}
