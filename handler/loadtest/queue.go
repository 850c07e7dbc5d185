package loadtest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"userconnectivity/handler/queue"
)

// queueClient sends heartbeats as messages over the embedded broker's HTTP, and sees when they are processed.
type queueClient struct {
	url    string // of the broker, without a trailing slash
	prefix string // of the message ids: the broker drops an id that it knows
	client http.Client
	before queueState
}

// queueState is what becomes of messages that are not processed.
type queueState struct{ dead, rejected int }

// newQueueClient connects to the broker and takes note of what its queues hold already.
func newQueueClient(ctx context.Context, url string) (*queueClient, error) {
	q := &queueClient{url: strings.TrimSuffix(url, "/"), prefix: strconv.FormatInt(time.Now().UnixNano(), 36) + "-", client: http.Client{Timeout: requestTimeout}}
	var err error
	_, q.before, err = q.state(ctx)
	return q, err
}

// brokerMessage is a message as the broker takes it.
type brokerMessage struct {
	ID          string `json:"id"`
	ContentType string `json:"contentType"`
	Body        []byte `json:"body"`
}

// message returns the request that sends one message.
func (q *queueClient) message(k int, beat []byte) (url string, body []byte) {
	body, _ = json.Marshal(map[string]any{"messages": []brokerMessage{ // it has nothing that cannot be encoded
		{ID: q.prefix + strconv.Itoa(k), ContentType: "application/json", Body: beat},
	}})
	return q.url + "/" + queue.Heartbeats + "/messages", body
}

const (
	drainTimeout = time.Minute
	drainPoll    = 20 * time.Millisecond
)

// drain waits until every message is settled. It returns how long that took, and what went wrong with messages.
func (q *queueClient) drain(ctx context.Context) (took time.Duration, faults []string, err error) {
	began := time.Now()
	t := time.NewTicker(drainPoll)
	defer t.Stop()
	for {
		waiting, now, err := q.state(ctx)
		if err != nil {
			return 0, nil, err
		}
		took = time.Since(began)
		if waiting > 0 && took > drainTimeout {
			faults = append(faults, fmt.Sprintf("%d messages were not processed within %s", waiting, drainTimeout))
		}
		if waiting == 0 || len(faults) > 0 {
			if n := now.dead - q.before.dead; n > 0 {
				faults = append(faults, fmt.Sprintf("%d messages are dead", n))
			}
			if n := now.rejected - q.before.rejected; n > 0 {
				faults = append(faults, fmt.Sprintf("%d messages were rejected", n))
			}
			return took, faults, nil
		}
		select {
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		case <-t.C:
		}
	}
}

// state returns how many heartbeats wait or are in process, and what became of the others.
func (q *queueClient) state(ctx context.Context) (waiting int, s queueState, err error) {
	beats, err := q.counts(ctx, queue.Heartbeats)
	if err != nil {
		return 0, s, err
	}
	rejected, err := q.counts(ctx, queue.Heartbeats+queue.RejectedSuffix)
	return beats.Active + beats.Locked, queueState{dead: beats.DeadLetter, rejected: rejected.Active}, err
}

type queueCounts struct{ Active, Locked, DeadLetter int }

func (q *queueClient) counts(ctx context.Context, name string) (c queueCounts, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, q.url+"/"+name, nil)
	if err != nil {
		return c, fmt.Errorf("read queue %s: %w", name, err)
	}
	resp, err := q.client.Do(req)
	if err != nil {
		return c, fmt.Errorf("read queue %s: %w", name, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c, fmt.Errorf("read queue %s: %s", name, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		return c, fmt.Errorf("read queue %s: %w", name, err)
	}
	return c, nil
}
