package redisconn

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// Endpoint says which Redis, and who we are there: URL, or Host with AccessKey; or either with Credentials.
type Endpoint struct {
	// URL is REDIS_URL: redis://[user:password@]host:port/db, rediss:// with TLS.
	URL string
	// Host is REDIS_HOST: host or host:port (10000, as Azure Managed Redis has it), always over TLS.
	Host string
	// AccessKey is REDIS_ACCESS_KEY.
	AccessKey string
	// Credentials returns user and password for a new connection, such as an Entra token. It is asked for each
	// connection, and connections are opened anew before they are Life old.
	Credentials func(ctx context.Context) (user, password string, err error)
	// Life is how long a connection with Credentials lives.
	Life time.Duration
	// Unannounced is true where Redis must not be asked for its maintenance notifications
	// (CLIENT MAINT_NOTIFICATIONS), which those servers refuse that have none.
	Unannounced bool
	// Unusable says why the endpoint must not be used, nil when it may: its settings are wrong. Every call fails with it.
	Unusable error
}

// options reads the endpoint. Its errors have no secret in them.
func (e Endpoint) options() (*redis.Options, error) {
	if e.Unusable != nil {
		return nil, e.Unusable
	}
	if e.URL != "" {
		opt, err := redis.ParseURL(e.URL)
		if err != nil {
			// The parser's error may quote the URL with its password.
			return nil, errors.New("REDIS_URL cannot be read: it must look like redis://user:password@host:6379/0, or rediss:// for TLS")
		}
		return e.withCredentials(opt), nil
	}
	if e.Host == "" {
		return nil, errors.New("no Redis is set: set REDIS_URL=redis://host:6379, or REDIS_HOST")
	}
	host, port, err := net.SplitHostPort(e.Host)
	if err != nil {
		host, port = e.Host, managedRedisPort
	}
	return e.withCredentials(&redis.Options{
		Addr: net.JoinHostPort(host, port), Password: e.AccessKey,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: host},
	}), nil
}

func (e Endpoint) withCredentials(opt *redis.Options) *redis.Options {
	if e.Credentials != nil {
		opt.CredentialsProviderContext, opt.ConnMaxLifetime = e.Credentials, e.Life
	}
	return opt
}

// managedRedisPort is where Azure Managed Redis listens.
const managedRedisPort = "10000"

// setting names what says where Redis is, secret what says who we are there.
func (e Endpoint) setting() string {
	if e.URL != "" {
		return "REDIS_URL"
	}
	return "REDIS_HOST"
}

func (e Endpoint) secret() string {
	switch {
	case e.URL != "":
		return "the user or password in REDIS_URL; percent-encode special characters in it"
	case e.AccessKey != "":
		return "REDIS_ACCESS_KEY; copy the key anew, or leave it out to use the app's identity where access keys are switched off"
	}
	return "the app's identity; give its object id an access policy on the Redis resource"
}

// diagnosis is an error with the setting and the cure in front.
type diagnosis struct {
	cure string
	err  error
}

func (d *diagnosis) Error() string { return d.cure + ": " + d.err.Error() }
func (d *diagnosis) Unwrap() error { return d.err }

// diagnose puts the setting and the cure in front of what Redis or the network said, where they are known.
func (e Endpoint) diagnose(err error) error {
	var known *diagnosis
	if errors.As(err, &known) {
		return err
	}
	if cure := e.cure(err); cure != "" {
		return &diagnosis{cure, err}
	}
	return err
}

func (e Endpoint) cure(err error) string {
	var dns *net.DNSError
	var slow interface{ Timeout() bool }
	if cure := cureOf(err, e.setting()); cure != "" {
		return cure
	}
	said := func(prefix string) bool { return redis.HasErrorPrefix(err, prefix) }
	has := func(part string) bool { return strings.Contains(err.Error(), part) }
	switch {
	case errors.As(err, &dns):
		return e.setting() + " names a host that cannot be found; check its spelling, and the private DNS zone if it has a private endpoint"
	case said("WRONGPASS"), said("AUTH "), said("invalid password"):
		return "redis refuses " + e.secret()
	case said("NOAUTH"):
		return "redis wants a password, and " + e.setting() + " has none; it must look like redis://:password@host:6379, or redis://user:password@host:6379"
	case said("SELECT is not allowed"), said("DB index is out of range"):
		return e.setting() + " names a database that this Redis does not have; leave the number at its end out"
	case has("first record does not look like a TLS handshake"), errors.Is(err, errBeginTLS) && errors.Is(err, context.DeadlineExceeded):
		return e.setting() + " asks for TLS, and the port seems to speak plain text; use redis:// or the TLS port"
	case has("x509:"), has("tls:"):
		return "the TLS certificate at " + e.setting() + " was refused; it must be made out to the name that stands there, by an authority that is trusted here (SSL_CERT_FILE)"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "nothing listens at the host and port of " + e.setting()
	case errors.As(err, &slow) && slow.Timeout():
		return "redis at " + e.setting() + " does not answer in time; check the port and the firewall, or what keeps it busy"
	}
	return ""
}

// diagnoseGreeting is diagnose for the first words with a server, which may speak another protocol.
func (e Endpoint) diagnoseGreeting(err error) error {
	if errors.As(err, new(*diagnosis)) || !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		return e.diagnose(err)
	}
	reason := "a TLS port needs rediss://"
	if e.URL == "" || strings.HasPrefix(e.URL, "rediss:") {
		reason = "the port may speak plain text"
	}
	return &diagnosis{"the server at " + e.setting() + " hung up during the greeting; " + reason + ", or Redis has no connection left (lower MAX_INSTANCES)", err}
}
