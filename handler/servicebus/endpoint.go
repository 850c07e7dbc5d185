package servicebus

import (
	"errors"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// endpoint is where a namespace is, and what may be said about it in an error.
type endpoint struct {
	// host is the fully qualified name, with a port when the connection string has one.
	host string
	// entity is the one queue or topic that the connection string is for, "" for the whole namespace.
	entity string
	// keyName is the authorization rule of the connection string, "" with a signature or a credential.
	keyName string
	// emulator means AMQP without TLS and no management endpoint.
	emulator bool
	// secrets never appear in an error.
	secrets []string
}

// parseConnectionString reads what the errors and the dialer need. Its errors never show the values of keys.
func parseConnectionString(s string) (endpoint, error) {
	var e endpoint
	var key, signature string
	for _, part := range strings.Split(s, ";") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		if !ok {
			return endpoint{}, errors.New("a part of the connection string is not name=value")
		}
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "endpoint":
			u, err := url.Parse(value)
			if err != nil || u.Scheme != "sb" || u.Host == "" {
				//lint:ignore ST1005 Endpoint is the name of the part
				return endpoint{}, errors.New("Endpoint of the connection string is not sb://<namespace>.servicebus.windows.net/")
			}
			e.host = u.Host
		case "sharedaccesskeyname":
			e.keyName = value
		case "sharedaccesskey":
			key = value
		case "sharedaccesssignature":
			signature = value
		case "entitypath":
			e.entity = value
		case "usedevelopmentemulator":
			on, err := strconv.ParseBool(value)
			if err != nil {
				return endpoint{}, errors.New("UseDevelopmentEmulator of the connection string is not true or false")
			}
			e.emulator = on
		}
	}
	switch {
	case e.host == "":
		return endpoint{}, errors.New("the connection string has no Endpoint=sb://<namespace>.servicebus.windows.net/")
	case signature != "":
		e.secrets = []string{signature}
	case e.keyName == "" || key == "":
		return endpoint{}, errors.New("the connection string has no SharedAccessKeyName with SharedAccessKey, and no SharedAccessSignature")
	default:
		e.secrets = []string{key}
	}
	return e, nil
}

// parseNamespace checks a fully qualified namespace, such as contoso.servicebus.windows.net.
func parseNamespace(s string) (endpoint, error) {
	if strings.ContainsAny(s, "/;=@ ") || !strings.Contains(s, ".") {
		return endpoint{}, errors.New("it is not a fully qualified namespace such as contoso.servicebus.windows.net")
	}
	return endpoint{host: s}, nil
}

// address is what to dial: 5671 for AMQP over TLS, 5672 for an emulator.
func (e endpoint) address() string {
	if _, _, err := net.SplitHostPort(e.host); err == nil {
		return e.host
	}
	if e.emulator {
		return net.JoinHostPort(e.host, "5672")
	}
	return net.JoinHostPort(e.host, "5671")
}

// hostname is host without a port: the name in the certificate.
func (e endpoint) hostname() string {
	if host, _, err := net.SplitHostPort(e.host); err == nil {
		return host
	}
	return e.host
}

// namespace is the name of the resource: the first label of host.
func (e endpoint) namespace() string {
	name, _, _ := strings.Cut(e.hostname(), ".")
	return name
}

// redact replaces the secrets in a text.
func (e endpoint) redact(text string) string {
	for _, s := range e.secrets {
		text = strings.ReplaceAll(text, s, "***")
	}
	return text
}
