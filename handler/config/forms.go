package config

import (
	"encoding/base64"
	"net/netip"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/queue"
)

// pattern is a form whose values match a regular expression.
func pattern(what, expression, example string) form {
	compiled := compiledOnce(expression)
	return form{want: what + " that matches " + expression, example: example, check: func(v string) fault {
		switch {
		case compiled().MatchString(v):
			return ""
		case pasted(v) != "":
			return "it " + pasted(v)
		}
		return mismatch
	}}
}

// compiledOnce compiles an expression when it is first needed: most settings are not set, and the start of the process
// waits for what is compiled before.
func compiledOnce(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

var (
	// databaseName is what Cosmos DB takes.
	databaseName = pattern("a name", `^[^/\\?#;=]{1,255}$`, "connectivity")
	// typePrefix is a reverse-DNS prefix, as CloudEvents asks for.
	typePrefix = pattern("a name", `^[A-Za-z0-9._-]{0,100}$`, "com.example.presence.")
	// appName is part of the source of each event, which is a URI.
	appName      = pattern("a name", `^[A-Za-z0-9._~-]{1,128}$`, "user-connectivity")
	instanceName = pattern("a name", `^[A-Za-z0-9._~:-]{1,255}$`, "instance-1")

	eventsQueue = form{want: "a name that matches " + queue.NamePattern, example: queue.ConnectivityEvents, check: func(v string) fault {
		switch {
		case pasted(v) != "":
			return "it " + pasted(v)
		case !queue.ValidName(v):
			return mismatch
		case strings.EqualFold(v, queue.Heartbeats) || strings.HasSuffix(strings.ToLower(v), queue.RejectedSuffix):
			return "it is the name of another queue of this app, whose messages are no events"
		}
		return ""
	}}

	folder = form{want: "the path of a folder", example: ".data", check: func(v string) fault {
		if what := pasted(v); what != "" {
			return "it " + what
		}
		return ""
	}}
)

// pasted says what a value is that belongs elsewhere, "" for none of these. It follows "it".
func pasted(v string) fault {
	lower := strings.ToLower(v)
	has := func(part string) bool { return strings.Contains(lower, part) }
	switch {
	case has("accountendpoint="):
		return "is a connection string of Cosmos DB; its AccountEndpoint goes to COSMOS_ENDPOINT, its AccountKey to COSMOS_KEY"
	case has("defaultendpointsprotocol="), has("accountname=") && has("accountkey="):
		return "is a connection string of a storage account, which goes to AzureWebJobsStorage"
	case has("sharedaccesskey"), has("sharedaccesssignature="), has("endpoint=sb://"):
		return "is a connection string of Service Bus, which goes to ServiceBusConnection"
	case has(",password="), has("abortconnect="), has(",ssl="):
		return "is a connection string for .NET; its host and port go to REDIS_HOST, its password to REDIS_ACCESS_KEY"
	case strings.HasPrefix(lower, "redis://"), strings.HasPrefix(lower, "rediss://"):
		return "is a URL of Redis, which goes to REDIS_URL"
	case strings.HasPrefix(lower, "sb://"):
		return "is a URL of Service Bus; its host goes to ServiceBusConnection__fullyQualifiedNamespace"
	case has(".documents.azure.com") && has("://"):
		return "is the URL of a Cosmos DB account, which goes to COSMOS_ENDPOINT"
	case has("://"):
		return "is a URL"
	}
	return ""
}

// hostName is a DNS name or an address without port. A word without a dot that is longer than any that people give
// to machines is taken for a key that was pasted here: the network's errors would show it.
func hostName(v string) bool {
	const longestWord = 40
	if _, err := netip.ParseAddr(v); err == nil {
		return true
	}
	return dnsName().MatchString(v) && len(v) <= 253 && (strings.Contains(v, ".") || len(v) <= longestWord)
}

// dnsName lets labels have a byte more than DNS does, so that the network says of one that it is too long.
var dnsName = compiledOnce(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,62}[A-Za-z0-9_])?)*\.?$`)

// hostPort cuts host or host:port; an IPv6 address with a port is in brackets.
func hostPort(v string) (host, port string) {
	if inner, ok := strings.CutPrefix(v, "["); ok {
		host, rest, _ := strings.Cut(inner, "]")
		if port, ok := strings.CutPrefix(rest, ":"); ok {
			return host, port
		}
		return host, rest // a rest without a colon is no port
	}
	if strings.Count(v, ":") > 1 {
		return v, ""
	}
	host, port, _ = strings.Cut(v, ":")
	return host, port
}

func validPort(port string) bool {
	n, err := strconv.Atoi(port)
	return err == nil && n >= 1 && n <= 65535
}

var redisHost = form{want: "a host, or host:port", example: "name.region.redis.azure.net:10000", check: func(v string) fault {
	if what := pasted(v); what != "" {
		return "it " + what
	}
	host, port := hostPort(v)
	switch {
	case strings.ContainsAny(v, "@/?,;= "):
		return "it has more than a host and a port in it; a password goes to REDIS_ACCESS_KEY"
	case strings.HasSuffix(v, ":") || port != "" && !validPort(port):
		return "its port is no number between 1 and 65535"
	case !hostName(host):
		return "it is no name of a host; a key goes to REDIS_ACCESS_KEY"
	}
	return ""
}}

var redisURL = form{want: "a URL of Redis, redis:// or with TLS rediss://", example: "rediss://:password@host:6380/0", check: func(v string) fault {
	scheme, rest, isURL := strings.Cut(v, "://")
	scheme = strings.ToLower(scheme)
	switch {
	case !isURL:
		if what := pasted(v); what != "" {
			return "it " + what
		}
		return "it has no redis:// in front; a host alone goes to REDIS_HOST"
	case scheme != "redis" && scheme != "rediss":
		return "it has another scheme in front"
	case strings.Contains(rest, ",password="):
		return "it is mixed with a connection string for .NET; write redis://:password@host:port"
	}
	u, err := url.Parse(v)
	_, port := hostPort(rest[strings.LastIndex(rest, "@")+1:])
	port, _, _ = strings.Cut(port, "/")
	switch {
	case err != nil && port != "" && !validPort(port):
		return "its port is no number between 1 and 65535"
	case err != nil:
		return "it is no URL; percent-encode what is special in its user and password, such as / as %2F, # as %23, ? as %3F, @ as %40, % as %25"
	case u.Hostname() == "":
		return "it names no host"
	case !hostName(u.Hostname()):
		return "what stands for its host is no name of a host; percent-encode what is special in its user and password, such as / as %2F, # as %23, ? as %3F, @ as %40"
	case u.Port() != "" && !validPort(u.Port()):
		return "its port is no number between 1 and 65535"
	case u.Fragment != "":
		return "it has a # in it; percent-encode that as %23 where it is part of the password"
	}
	if number := strings.Trim(u.Path, "/"); number != "" {
		if n, err := strconv.Atoi(number); err != nil || n < 0 {
			return "what follows its host is no number of a database; leave it out, or percent-encode / as %2F where it is part of the password"
		}
	}
	if _, err := redis.ParseURL(v); err != nil {
		return "what follows the ? in it is not known; leave it out"
	}
	return ""
}}

var accessKey = form{want: "the key alone", check: func(v string) fault {
	if what := pasted(v); what != "" {
		return "it " + what
	}
	return ""
}}

// connectionString is that of a whole namespace, or of the events' queue alone, which is enough to send events.
func connectionString(eventsQueue string) form {
	return form{
		want:    "a connection string of a Service Bus namespace",
		example: "Endpoint=sb://name.servicebus.windows.net/;SharedAccessKeyName=rule;SharedAccessKey=key",
		check: func(v string) fault {
			if what := pasted(v); what != "" && !strings.HasPrefix(string(what), "is a connection string of Service Bus") {
				return "it " + what
			}
			if !strings.Contains(v, "=") && hostName(v) {
				return "it is the name of a host, which goes to ServiceBusConnection__fullyQualifiedNamespace"
			}
			parts := map[string]string{}
			for part := range strings.SplitSeq(v, ";") {
				name, value, ok := strings.Cut(part, "=")
				if !ok && strings.TrimSpace(part) != "" {
					return "a part of it is not name=value; parts are separated by semicolons"
				}
				parts[strings.ToLower(strings.TrimSpace(name))] = strings.TrimSpace(value)
			}
			return wrongParts(parts, eventsQueue)
		},
	}
}

// wrongParts finds what is wrong with the parts of a connection string, which are by their names in small letters.
func wrongParts(parts map[string]string, eventsQueue string) fault {
	endpoint, err := url.Parse(parts["endpoint"])
	switch {
	case parts["endpoint"] == "":
		return "it has no Endpoint"
	case err != nil || endpoint.Scheme != "sb" || !hostName(endpoint.Hostname()) || endpoint.Port() != "" && !validPort(endpoint.Port()):
		return "its Endpoint is not sb:// and the name of a host"
	case parts["sharedaccesssignature"] == "" && (parts["sharedaccesskeyname"] == "" || parts["sharedaccesskey"] == ""):
		return "it has no SharedAccessKeyName with SharedAccessKey, and no SharedAccessSignature"
	case parts["entitypath"] != "" && !strings.EqualFold(parts["entitypath"], eventsQueue):
		return "its EntityPath says that it is that of another queue than EVENTS_QUEUE; use one of the namespace " +
			"(az servicebus namespace authorization-rule keys list --resource-group <resource-group> --namespace-name <namespace> --name <rule>)"
	case parts["usedevelopmentemulator"] != "":
		if _, err := strconv.ParseBool(parts["usedevelopmentemulator"]); err != nil {
			return "its UseDevelopmentEmulator is not true or false"
		}
	}
	return ""
}

var namespace = form{want: "the host name of a Service Bus namespace", example: "name.servicebus.windows.net", check: func(v string) fault {
	host, port := hostPort(v) // a port is for stand-ins of Service Bus
	switch what := pasted(v); {
	case strings.HasPrefix(string(what), "is a URL of Service Bus"):
		return "it has sb:// in front; leave that and the / at the end out"
	case what != "":
		return "it " + what
	case !hostName(host) || port != "" && !validPort(port):
		return "it is no name of a host; leave out what stands around that"
	case !strings.Contains(host, "."):
		return "it is not the full name; add .servicebus.windows.net"
	}
	return ""
}}

// plainURL is a form of URLs whose host is all that matters: no user, no query.
func plainURL(want, example string, path bool) form {
	return form{want: want, example: example, check: func(v string) fault {
		u, err := url.Parse(v)
		scheme, _, _ := strings.Cut(strings.ToLower(v), "://")
		what := pasted(v)
		misplaced := what != "" && what != "is a URL" && (scheme != "https" && scheme != "http")
		switch {
		case misplaced:
			return "it " + what
		case scheme != "https" && scheme != "http":
			if hostName(strings.TrimSuffix(v, ":443")) && strings.Contains(v, ".") {
				return "it has no https:// in front"
			}
			return mismatch
		case err != nil:
			return "it is no URL"
		case u.User != nil:
			return "it has a user or password in it, which are of no use here"
		case !hostName(u.Hostname()):
			return "it names no host"
		case u.Port() != "" && !validPort(u.Port()):
			return "its port is no number between 1 and 65535"
		case u.RawQuery != "" || u.Fragment != "" || !path && strings.Trim(u.Path, "/") != "":
			return "it has more than a host and a port in it; a key goes to a setting of its own"
		}
		return ""
	}}
}

var (
	localQueueURL  = plainURL("an http URL", "http://127.0.0.1:7071/local/queues", true)
	cosmosEndpoint = plainURL("the http URL of a Cosmos DB account", "https://name.documents.azure.com:443/", false)
)

// cosmosKey is a key of the account at an endpoint, "" for one that is not known.
func cosmosKey(endpoint string) form {
	account := "<account>"
	if u, err := url.Parse(endpoint); err == nil && u.Hostname() != "" {
		account, _, _ = strings.Cut(u.Hostname(), ".")
	}
	return form{want: "a key of the Cosmos DB account", check: func(v string) fault {
		if what := pasted(v); what != "" {
			return "it " + what
		}
		if _, err := base64.StdEncoding.DecodeString(v); err != nil {
			return fault("it is not base64; copy it anew: az cosmosdb keys list --name " + account + " --resource-group <resource-group> --query primaryMasterKey")
		}
		return ""
	}}
}
