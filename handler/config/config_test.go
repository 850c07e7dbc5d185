package config_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"userconnectivity/handler/config"
)

func fromEnv(env map[string]string) (config.Config, error) {
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
		c.MaintenanceEvents != "auto" || c.ServiceBusConnection != "" || c.ServiceBusNamespace != "" || c.CosmosEndpoint != "" || c.CosmosKey != "" || c.CosmosDatabase != "connectivity" {
		t.Errorf("%+v", c)
	}
	empty := map[string]string{}
	for _, name := range names(t) {
		empty[name] = "  "
	}
	blank, err := fromEnv(empty)
	if err != nil || blank != c {
		t.Errorf("blank values are not as none: %+v, %v", blank, err)
	}
}

// names are the settings that FromEnv reads.
func names(t *testing.T) []string {
	t.Helper()
	var all []string
	if _, err := config.FromEnv(func(name string) (string, bool) { all = append(all, name); return "", false }); err != nil {
		t.Fatal(err)
	}
	return all
}

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
		{"REDIS_MAINTENANCE_EVENTS", "Off", func(c config.Config) any { return c.MaintenanceEvents }, "off"},
		{"ServiceBusConnection", "Endpoint=sb://x/;SharedAccessKey=k", func(c config.Config) any { return string(c.ServiceBusConnection) }, "Endpoint=sb://x/;SharedAccessKey=k"},
		{"ServiceBusConnection__fullyQualifiedNamespace", "x.servicebus.windows.net", func(c config.Config) any { return c.ServiceBusNamespace }, "x.servicebus.windows.net"},
		{"COSMOS_ENDPOINT", "https://x.documents.azure.com:443/", func(c config.Config) any { return c.CosmosEndpoint }, "https://x.documents.azure.com:443/"},
		{"COSMOS_KEY", "key==", func(c config.Config) any { return string(c.CosmosKey) }, "key=="},
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

// wrong are values that are refused, with what the message says of them.
var wrong = []struct{ name, value, want string }{
	{"FUNCTIONS_CUSTOMHANDLER_PORT", "65536", "between 0 and 65535"},
	{"FUNCTIONS_CUSTOMHANDLER_PORT", "-1", "between 0 and 65535"},
	{"FUNCTIONS_CUSTOMHANDLER_PORT", "http", "whole number"},
	{"REDIS_PARTITIONS", "0", "between 1 and 1024"},
	{"REDIS_PARTITIONS", "1025", "between 1 and 1024"},
	{"REDIS_PARTITIONS", "16.0", "whole number"},
	{"LEASE_KEYS", "yes", "on or off"},
	{"SESSION_TTL_SECONDS", "4", "between 5 and 3600"},
	{"SESSION_TTL_SECONDS", "3601", "between 5 and 3600"},
	{"SESSION_TTL_SECONDS", "45s", "whole number"},
	{"SESSION_TTL_SECONDS", "99999999999999999999", "whole number"},
	{"EVENTS_QUEUE", "/events", "a name"},
	{"EVENTS_QUEUE", "my queue", "a name"},
	{"EVENTS_QUEUE", strings.Repeat("q", 260), "a name"},
	{"EXPIRATION_ROUTES", "cart:*", `"cart:*" is not pattern=queue`},
	{"EXPIRATION_ROUTES", "=carts", "is not pattern=queue"},
	{"EXPIRATION_ROUTES", "a=q;cart:*=my queue", `"my queue" is no name`},
	{"EXPIRATION_ROUTES", strings.Repeat("a=q;", 33), "33 routes"},
	{"EVENT_TYPE_PREFIX", "com example", "a name"},
	{"EVENT_TYPE_PREFIX", strings.Repeat("p", 101), "a name"},
	{"MAX_DELIVERY_COUNT", "0", "between 1 and 2000"},
	{"MAX_DELIVERY_COUNT", "2001", "between 1 and 2000"},
	{"LOCAL_QUEUE_URL", "127.0.0.1:7071", "an http URL"},
	{"LOCAL_QUEUE_URL", "ftp://host/x", "an http URL"},
	{"LOCAL_QUEUE_URL", "http://", "an http URL"},
	{"MAX_INSTANCES", "0", "between 1 and 1000"},
	{"MAX_INSTANCES", "many", "whole number"},
	{"REDIS_MAX_CLIENTS", "-1", "between 0 and 1000000"},
	{"REDIS_MAINTENANCE_EVENTS", "sometimes", "auto, on, off"},
	{"COSMOS_ENDPOINT", "x.documents.azure.com", "an http URL"},
	{"COSMOS_DATABASE", "a/b", "a name"},
	{"LOG_LEVEL", "loud", "debug, info, warn or error"},
	{"AzureWebJobs_ExpirationListener_Disabled", "perhaps", "true or false"},
}

// TestWrongSettings: the message names the variable, what it must be, and an example that is taken.
func TestWrongSettings(t *testing.T) {
	t.Parallel()
	for _, tt := range wrong {
		_, err := fromEnv(map[string]string{tt.name: tt.value})
		if err == nil {
			t.Errorf("%s=%s was taken", tt.name, tt.value)
			continue
		}
		text := err.Error()
		if !strings.HasPrefix(text, "settings: ") || !strings.Contains(text, tt.name+" must be ") || !strings.Contains(text, tt.want) || strings.Count(text, "\n") > 0 {
			t.Errorf("%s=%s: %s, want %q", tt.name, tt.value, text, tt.want)
		}
		_, example, found := strings.Cut(text, "for example "+tt.name+"=")
		if !found {
			t.Errorf("%s=%s: %s has no example", tt.name, tt.value, text)
			continue
		}
		if _, err := fromEnv(map[string]string{tt.name: example}); err != nil {
			t.Errorf("the example of %s is refused: %v", tt.name, err)
		}
	}
}

// TestAllProblemsAreToldAtOnce, each setting once.
func TestAllProblemsAreToldAtOnce(t *testing.T) {
	t.Parallel()
	secrets := []string{"REDIS_URL", "REDIS_ACCESS_KEY", "ServiceBusConnection", "COSMOS_KEY"}
	env := map[string]string{}
	for _, name := range secrets {
		env[name] = "hunter2"
	}
	for _, tt := range wrong {
		env[tt.name] = tt.value
	}
	c, err := fromEnv(env)
	if err == nil || c != (config.Config{}) {
		t.Fatalf("%+v, %v", c, err)
	}
	for name := range env {
		want := 1
		if slices.Contains(secrets, name) {
			want = 0
		}
		if got := strings.Count(err.Error(), name+" must be"); got != want {
			t.Errorf("%s is told %d times in %s", name, got, err)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a secret is in %s", err)
	}
}

// TestSecretsAreNeverPrinted, however a configuration is written out.
func TestSecretsAreNeverPrinted(t *testing.T) {
	t.Parallel()
	c, err := fromEnv(map[string]string{
		"REDIS_URL": "redis://user:hunter2@host:6379/0", "REDIS_ACCESS_KEY": "hunter2", "ServiceBusConnection": "SharedAccessKey=hunter2", "COSMOS_KEY": "hunter2",
	})
	if err != nil {
		t.Fatal(err)
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
