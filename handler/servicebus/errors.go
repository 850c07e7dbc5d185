package servicebus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"
	"github.com/Azure/go-amqp"

	"userconnectivity/handler/identity"
)

// Conditions of Service Bus beyond those of AMQP.
const (
	condServerBusy      amqp.ErrCond = "com.microsoft:server-busy"
	condTimeout         amqp.ErrCond = "com.microsoft:timeout"
	condCancelled       amqp.ErrCond = "com.microsoft:operation-cancelled"
	condEntityDisabled  amqp.ErrCond = "com.microsoft:entity-disabled"
	defaultThrottleWait              = 2 * time.Second
	maxThrottleWait                  = 30 * time.Second
)

// kind says what to do about a failed attempt.
type kind int

const (
	lost      kind = iota // link or connection is gone: again, the first time at once
	transient             // again after a pause
	throttled             // again when Service Bus said
	permanent             // somebody must mend something
)

// scope says what must not be used again.
type scope int

const (
	ofAttempt scope = iota
	ofLink
	ofConnection
)

type verdict struct {
	kind  kind
	scope scope
	wait  time.Duration // of throttled
}

// judge decides about the error of an attempt made for a caller whose context is ctx.
func judge(ctx context.Context, err error) verdict {
	var amqpErr *amqp.Error
	var sdkErr *azservicebus.Error
	var dial *dialError
	var cred *credentialError
	switch {
	case ctx.Err() != nil, errors.Is(err, ErrClosed):
		return verdict{kind: permanent} // nobody waits any more
	case errors.Is(err, errTooMuch):
		return verdict{kind: lost, scope: ofLink}
	case errors.Is(err, errLost), errors.Is(err, errNoAnswer), errors.Is(err, context.Canceled), errors.Is(err, net.ErrClosed):
		return verdict{kind: lost, scope: ofConnection} // it was retired meanwhile
	case errors.As(err, &cred):
		return verdict{kind: permanent, scope: ofConnection}
	case errors.As(err, &dial):
		if isWrongHost(err) || isTLS(err) {
			return verdict{kind: permanent, scope: ofConnection}
		}
		return verdict{kind: transient, scope: ofConnection}
	case errors.As(err, &sdkErr):
		switch sdkErr.Code {
		case azservicebus.CodeUnauthorizedAccess, azservicebus.CodeNotFound:
			return verdict{kind: permanent, scope: ofLink}
		case azservicebus.CodeTimeout:
			return verdict{kind: transient, scope: ofLink}
		case azservicebus.CodeClosed:
			return verdict{kind: lost, scope: ofLink}
		}
		return verdict{kind: lost, scope: ofConnection}
	case errors.As(err, &amqpErr):
		detached := ofAttempt
		if linkErr := (*amqp.LinkError)(nil); errors.As(err, &linkErr) {
			detached = ofLink
		}
		switch amqpErr.Condition {
		case condServerBusy:
			return verdict{kind: throttled, scope: detached, wait: throttleWait(amqpErr.Description)}
		case condTimeout, condCancelled:
			return verdict{kind: transient, scope: detached}
		case amqp.ErrCondNotFound, amqp.ErrCondResourceDeleted, amqp.ErrCondNotAllowed, amqp.ErrCondUnauthorizedAccess,
			amqp.ErrCondResourceLimitExceeded, condEntityDisabled:
			return verdict{kind: permanent, scope: ofLink}
		}
	}
	return verdict{kind: transient, scope: ofConnection}
}

var waitSeconds = regexp.MustCompile(`(?i)wait (\d+) seconds`)

// throttleWait is how long Service Bus asks to wait.
func throttleWait(description string) time.Duration {
	if m := waitSeconds.FindStringSubmatch(description); m != nil {
		if n, err := strconv.Atoi(m[1]); err == nil && n > 0 {
			return min(time.Duration(n)*time.Second, maxThrottleWait)
		}
	}
	return defaultThrottleWait
}

func isSizeExceeded(err error) bool {
	var amqpErr *amqp.Error
	return errors.Is(err, azservicebus.ErrMessageTooLarge) ||
		errors.As(err, &amqpErr) && amqpErr.Condition == amqp.ErrCondMessageSizeExceeded
}

func isWrongHost(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound
}

func isTLS(err error) bool {
	var verify *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	return errors.As(err, &verify) || errors.As(err, &header) || errors.As(err, &unknown) || errors.As(err, &name)
}

// explained is an error that says which resource, what is wrong and how to mend it, without secrets.
type explained struct {
	text  string
	cause error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.cause }

// explain makes the error of a call. For a caller who gave up, last is the error of the attempt before, if any.
func (s *Sender) explain(ctx context.Context, op, queue string, err, last error) error {
	where := fmt.Sprintf("%s queue %s of %s", op, queue, s.endpoint.host)
	if s.ctx.Err() != nil {
		err = ErrClosed
	}
	if ctx.Err() != nil || errors.Is(err, ErrClosed) {
		text := fmt.Sprintf("%s: %v", where, err)
		if last != nil {
			problem, mend := s.diagnose(queue, last)
			text += fmt.Sprintf("; the attempt before: %s; %s", problem, mend)
		} else if errors.Is(err, context.DeadlineExceeded) {
			text += "; no answer so far; " + s.lookAtNamespace()
		}
		return &explained{s.endpoint.redact(text), err}
	}
	problem, mend := s.diagnose(queue, err)
	return &explained{s.endpoint.redact(fmt.Sprintf("%s: %s; %s (%s)", where, problem, mend, s.words(err))), err}
}

// diagnose returns what is wrong and what mends it.
func (s *Sender) diagnose(queue string, err error) (problem, mend string) {
	ns := s.endpoint.namespace()
	inNamespace := "--resource-group <resource-group> --namespace-name " + ns
	var amqpErr *amqp.Error
	var sdkErr *azservicebus.Error
	var dial *dialError
	var cred *credentialError
	var condition amqp.ErrCond
	words := s.words(err)
	switch {
	case errors.As(err, &cred):
		problem, mend = identity.Diagnose(cred.err)
		return problem, mend + "; it needs the role " + senderRole
	case isWrongHost(err):
		return "there is no such host", "check the name with: az servicebus namespace list --query \"[].serviceBusEndpoint\""
	case isTLS(err):
		return "its certificate is not trusted", "let no proxy intercept TLS to it, and check the clock of this machine"
	case errors.As(err, &dial):
		return "it cannot be reached",
			"allow outgoing TCP to " + s.endpoint.address() + " and check: az servicebus namespace network-rule-set show " + inNamespace
	case errors.Is(err, errNoAnswer):
		return fmt.Sprintf("no answer within %v", s.cfg.SendTimeout), s.lookAtNamespace()
	case errors.As(err, &sdkErr):
		switch sdkErr.Code {
		case azservicebus.CodeUnauthorizedAccess:
			condition = amqp.ErrCondUnauthorizedAccess
		case azservicebus.CodeNotFound:
			condition = amqp.ErrCondNotFound
		}
	case errors.As(err, &amqpErr):
		condition = amqpErr.Condition
	}
	switch condition {
	case amqp.ErrCondUnauthorizedAccess:
		return s.diagnoseAccess(queue, words)
	case amqp.ErrCondNotFound, amqp.ErrCondResourceDeleted:
		if s.endpoint.emulator {
			return "there is no such queue or topic", "add it to the Config.json of the emulator and restart it"
		}
		return "there is no such queue or topic", "create it with: " + createQueue(inNamespace, queue)
	case amqp.ErrCondNotAllowed:
		if strings.Contains(words, "ession") {
			return "it requires sessions, which it must not have", "make it anew: " + recreateQueue(inNamespace, queue)
		}
	case condEntityDisabled:
		return "it is disabled", fmt.Sprintf("enable it with: az servicebus queue update %s --name %s --status Active", inNamespace, queue)
	case amqp.ErrCondResourceLimitExceeded:
		return "it is full, or the namespace has too many connections", fmt.Sprintf("see: az servicebus queue show %s --name %s --query \"[countDetails,sizeInBytes,maxSizeInMegabytes]\"", inNamespace, queue)
	case condServerBusy:
		return "the namespace is throttled", "a Premium namespace takes more messaging units: az servicebus namespace update --resource-group <resource-group> --name " + ns + " --capacity <messaging-units>; a Standard one does not become Premium, it needs a new namespace (docs/deploy.md, Growing)"
	}
	return "the connection failed", s.lookAtNamespace()
}

// lookAtNamespace is what to do where nothing more is known.
func (s *Sender) lookAtNamespace() string {
	return "check: az servicebus namespace show --resource-group <resource-group> --name " + s.endpoint.namespace() + " --query status"
}

// diagnoseAccess explains a 401 for the kind of credential in use.
func (s *Sender) diagnoseAccess(queue, words string) (problem, mend string) {
	ns := s.endpoint.namespace()
	rule := fmt.Sprintf("--resource-group <resource-group> --namespace-name %s --name %s", ns, s.endpoint.keyName)
	switch {
	case s.cfg.Credential != nil:
		who := "the identity of this app"
		assignee := "<object-id>"
		if id, _ := s.identity.Load().(string); id != "" {
			who += " (object id " + id + ")"
			assignee = id
		}
		return who + " may not send: it lacks the role " + senderRole,
			fmt.Sprintf("grant it with: az role assignment create --role \""+senderRole+"\" --assignee-object-id %s --assignee-principal-type ServicePrincipal --scope $(az servicebus namespace show --resource-group <resource-group> --name %s --query id --output tsv)", assignee, ns)
	case strings.Contains(strings.ToLower(words), "expired"):
		return "the token is expired", "set the clock of this machine, or make a new signature: the connection string may hold an old one"
	case strings.Contains(words, "claim"):
		return fmt.Sprintf("the authorization rule %s may not send", s.endpoint.keyName),
			fmt.Sprintf("allow it with: az servicebus namespace authorization-rule update %s --rights Send", rule)
	}
	return fmt.Sprintf("the key of the authorization rule %s is wrong", s.endpoint.keyName),
		fmt.Sprintf("take the connection string from: az servicebus namespace authorization-rule keys list %s --query primaryConnectionString --output tsv", rule)
}

// senderRole is what the identity of the app needs.
const senderRole = "Azure Service Bus Data Sender"

func createQueue(inNamespace, name string) string {
	return fmt.Sprintf("az servicebus queue create %s --name %s --enable-duplicate-detection true --duplicate-detection-history-time-window PT10M --lock-duration PT5M --max-delivery-count %d", inNamespace, name, maxDeliveryCount)
}

// recreateQueue is for what is fixed when a queue is created. Its messages are lost.
func recreateQueue(inNamespace, queue string) string {
	return fmt.Sprintf("az servicebus queue delete %s --name %s (when it is empty), then %s", inNamespace, queue, createQueue(inNamespace, queue))
}

var description = regexp.MustCompile(`(?s)Description: (.*), Info: map\[.*\]\}|description: (.*)$`)

// words are those of the broker or of the system about an error, in one line and without secrets.
func (s *Sender) words(err error) string {
	if cred := (*credentialError)(nil); errors.As(err, &cred) {
		return s.endpoint.redact(identity.Words(cred.err))
	}
	text := err.Error()
	if m := description.FindStringSubmatch(text); m != nil && m[1]+m[2] != "" {
		text = m[1] + m[2]
	}
	return s.endpoint.redact(oneLine(text))
}

// oneLine folds white space and shortens what is long.
func oneLine(text string) string {
	const limit = 400
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "..."
	}
	return text
}
