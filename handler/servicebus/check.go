package servicebus

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus/admin"

	"userconnectivity/handler/queue"
)

const (
	// checkTimeout bounds one check.
	checkTimeout = 20 * time.Second
	// batchTime is how long a batch waits for a part that is away before it goes back, and maxDeliveryCount how often
	// it may do so. With fewer than leastMaxDeliveryCount an outage of four hours dead-letters what is well.
	batchTime             = 150 * time.Second
	maxDeliveryCount      = queue.MaxDeliveryCount
	leastMaxDeliveryCount = 100
)

// Check looks at the properties of a queue or topic, which needs the right Manage (role Azure Service Bus Data Owner),
// and returns a warning with the command that mends it for each that would lose the promises of this project. Without
// the right, and for an emulator, it sees nothing and returns nil. A queue that cannot be reached is for Ping to tell.
func (s *Sender) Check(ctx context.Context, name string) []string {
	if s.endpoint.emulator {
		return nil
	}
	ctx, done, err := s.begin(ctx, name)
	if err != nil {
		return nil
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	client, err := s.adminClient(ctx)
	if err != nil {
		return nil
	}
	inNamespace := "--resource-group <resource-group> --namespace-name " + s.endpoint.namespace()
	where := fmt.Sprintf("queue %s of %s ", name, s.endpoint.host)

	q, err := client.GetQueue(ctx, name, nil)
	if err != nil {
		return s.unchecked(where, err)
	}
	if q == nil || q.LockDuration == nil { // the SDK takes a topic for a queue without properties
		return s.checkTopic(ctx, client, name, inNamespace)
	}
	var warnings []string
	warn := func(problem, mend string) {
		warnings = append(warnings, where+problem+": "+mend)
	}
	if is(q.RequiresSession) {
		warn("requires sessions, so that its batches would serve one user at a time", recreateQueue(inNamespace, name))
	}
	if !is(q.RequiresDuplicateDetection) {
		warn("has no duplicate detection, so that a repeated send delivers an event twice", recreateQueue(inNamespace, name))
	}
	if *q.LockDuration != "PT5M" {
		warn("locks messages for "+*q.LockDuration+" instead of PT5M, and a batch gets no renewal",
			fmt.Sprintf("az servicebus queue update %s --name %s --lock-duration PT5M", inNamespace, name))
	}
	if n := q.MaxDeliveryCount; n != nil && *n < leastMaxDeliveryCount {
		warn(fmt.Sprintf("gives a message up after %d deliveries, which an outage of %v uses up", *n, time.Duration(*n)*batchTime),
			fmt.Sprintf("az servicebus queue update %s --name %s --max-delivery-count %d", inNamespace, name, maxDeliveryCount))
	}
	if q.Status != nil && *q.Status != admin.EntityStatusActive {
		warn("is "+string(*q.Status), fmt.Sprintf("az servicebus queue update %s --name %s --status Active", inNamespace, name))
	}
	return warnings
}

// CheckAside looks, with the same right as Check, whether messages were put aside that somebody has to look at: in the
// queue -rejected of each of the queues, or by the broker in its dead letters. It returns a warning for each place that
// has any, with what to do. It sees nothing of a topic, of a queue that is not there, and where the right is missing.
func (s *Sender) CheckAside(ctx context.Context, queues ...string) []string {
	if s.endpoint.emulator || len(queues) == 0 {
		return nil
	}
	ctx, done, err := s.begin(ctx, queues[0])
	if err != nil {
		return nil
	}
	defer done()
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	client, err := s.adminClient(ctx)
	if err != nil {
		return nil
	}
	var warnings []string
	for _, name := range queues {
		if n := s.counted(ctx, client, name+queue.RejectedSuffix); n != nil && n.ActiveMessageCount > 0 {
			warnings = append(warnings, fmt.Sprintf("%d messages are in the queue %s of %s, since they can never succeed: each has its reason with it (property reason); "+
				"mend that, send them again, and take them out", n.ActiveMessageCount, name+queue.RejectedSuffix, s.endpoint.host))
		}
		if n := s.counted(ctx, client, name); n != nil && n.DeadLetterMessageCount > 0 {
			warnings = append(warnings, fmt.Sprintf("%d messages are in the dead letters of the queue %s of %s: no app reads them there (functions DeadLetters and HeartbeatMessages), "+
				"or they came a moment ago", n.DeadLetterMessageCount, name, s.endpoint.host))
		}
	}
	return warnings
}

// counted returns what a queue has, nil where that cannot be seen.
func (s *Sender) counted(ctx context.Context, client *admin.Client, name string) *admin.GetQueueRuntimePropertiesResponse {
	q, err := client.GetQueueRuntimeProperties(ctx, name, nil)
	if err != nil {
		return nil
	}
	return q
}

func (s *Sender) checkTopic(ctx context.Context, client *admin.Client, topic, inNamespace string) []string {
	where := fmt.Sprintf("topic %s of %s ", topic, s.endpoint.host)
	t, err := client.GetTopic(ctx, topic, nil)
	switch {
	case err != nil:
		return s.unchecked(where, err)
	case t == nil:
		return []string{fmt.Sprintf("queue %s of %s does not exist: %s", topic, s.endpoint.host, createQueue(inNamespace, topic))}
	case !is(t.RequiresDuplicateDetection):
		return []string{where + fmt.Sprintf("has no duplicate detection, so that a repeated send delivers an event twice: "+
			"az servicebus topic delete %s --name %s, then az servicebus topic create %s --name %s --enable-duplicate-detection true", inNamespace, topic, inNamespace, topic)}
	}
	return nil
}

// unchecked is nil for what is no news: a missing right, and a caller who gave up.
func (s *Sender) unchecked(where string, err error) []string {
	var response *azcore.ResponseError
	if errors.As(err, &response) && response.StatusCode != http.StatusUnauthorized && response.StatusCode != http.StatusForbidden {
		return []string{where + fmt.Sprintf("could not be checked: the management endpoint answered %d", response.StatusCode)}
	}
	return nil
}

// adminClient makes a client for the calls of one check: tokens are asked for under its context.
func (s *Sender) adminClient(ctx context.Context) (*admin.Client, error) {
	options := &admin.ClientOptions{ClientOptions: azcore.ClientOptions{
		Transport: s.transport,
		Retry:     policy.RetryOptions{MaxRetries: -1},
	}}
	if s.cfg.ConnectionString != "" {
		return admin.NewClientFromConnectionString(s.cfg.ConnectionString, options)
	}
	inner, err := s.cfg.Credential()
	if err != nil {
		return nil, err
	}
	return admin.NewClient(s.endpoint.host, &credential{inner, ctx, nil}, options)
}

func is(b *bool) bool { return b != nil && *b }
