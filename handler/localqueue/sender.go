// Package localqueue is the handler's client of the embedded broker, which the local host serves over loopback
// HTTP. It takes the place of Service Bus where there is none.
package localqueue

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"userconnectivity/handler/fault"
	"userconnectivity/handler/queue"
)

// Limits of one request; the broker takes at least as much.
const (
	maxMessages = 1000
	maxBytes    = 4 << 20
)

// Sender sends messages to the embedded broker. It is safe for concurrent use.
type Sender struct {
	base   string
	client *http.Client
}

// New returns a Sender for the broker at baseURL, such as http://127.0.0.1:7071/local/queues. A nil client means
// one of its own, whose requests end with their context.
func New(baseURL string, client *http.Client) *Sender {
	if client == nil {
		client = &http.Client{Transport: &http.Transport{ // no proxy: the broker is on the loopback interface
			MaxIdleConnsPerHost: 32,
			IdleConnTimeout:     time.Minute,
		}}
	}
	return &Sender{base: strings.TrimSuffix(baseURL, "/"), client: client}
}

// message is a message as the broker takes it.
type message struct {
	ID          string         `json:"id"`
	Subject     string         `json:"subject,omitempty"`
	SessionID   string         `json:"sessionId,omitempty"`
	ContentType string         `json:"contentType,omitempty"`
	Properties  map[string]any `json:"properties,omitempty"`
	Body        []byte         `json:"body"`
	NotBefore   time.Time      `json:"notBefore,omitzero"`
}

// Send puts msgs into a queue, in order. When it returns nil all of them are durable; when it returns an error
// some may be. To send them again is harmless: the broker drops ids that it saw within ten minutes.
func (s *Sender) Send(ctx context.Context, name string, msgs []queue.Message) error {
	var batch []json.RawMessage
	size := 0
	for _, m := range msgs {
		data, err := json.Marshal(message{m.ID, m.Subject, m.SessionID, m.ContentType, m.Properties, m.Body, m.NotBefore})
		if err != nil {
			return fmt.Errorf("send to queue %s: encode message %s: %w", name, m.ID, err)
		}
		if len(batch) == maxMessages || (len(batch) > 0 && size+len(data) > maxBytes) {
			if err := s.post(ctx, name, batch); err != nil {
				return err
			}
			batch, size = batch[:0], 0
		}
		batch = append(batch, data)
		size += len(data) + 1
	}
	if len(batch) == 0 {
		return nil
	}
	return s.post(ctx, name, batch)
}

// Ping returns nil when the broker answers for a queue.
func (s *Sender) Ping(ctx context.Context, name string) error {
	if err := s.do(ctx, http.MethodGet, s.url(name), nil, http.StatusOK); err != nil {
		return fmt.Errorf("ping queue %s: %w", name, err)
	}
	return nil
}

func (s *Sender) post(ctx context.Context, name string, batch []json.RawMessage) error {
	body, err := json.Marshal(map[string]any{"messages": batch})
	if err == nil {
		err = s.do(ctx, http.MethodPost, s.url(name)+"/messages", body, http.StatusCreated)
	}
	if err != nil {
		return fmt.Errorf("send %d messages to queue %s: %w", len(batch), name, err)
	}
	return nil
}

func (s *Sender) url(name string) string { return s.base + "/" + url.PathEscape(name) }

func (s *Sender) do(ctx context.Context, method, url string, body []byte, want int) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// Read to the end, so that the connection is used again.
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode != want {
		var problem struct {
			Detail string `json:"detail"`
		}
		_ = json.Unmarshal(answer, &problem) // without a detail the status has to do
		text := fmt.Sprintf("the broker answered %s: %s", resp.Status, problem.Detail)
		if resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusRequestEntityTooLarge {
			return &fault.Error{Kind: fault.Invalid, Message: text} // it does not take these messages, ever
		}
		return errors.New(text)
	}
	return nil
}
