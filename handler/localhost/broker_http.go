package localhost

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// queuesPath is where the embedded broker is served, on the port of the host.
const queuesPath = "/local/queues"

// Limits of one request to the broker.
const (
	maxEnqueueBytes    = 8 << 20
	maxEnqueueMessages = 1000
	maxMessageID       = 128
	maxPeek            = 1000
	defaultPeek        = 100
)

// wireMessage is a message in JSON; NotBefore is only in requests, the members after it only in answers.
type wireMessage struct {
	ID               string                     `json:"id"`
	Subject          string                     `json:"subject"`
	SessionID        string                     `json:"sessionId,omitempty"`
	ContentType      string                     `json:"contentType"`
	Properties       map[string]json.RawMessage `json:"properties"`
	Body             []byte                     `json:"body"`
	NotBefore        time.Time                  `json:"notBefore,omitzero"`
	DeliveryCount    int                        `json:"deliveryCount"`
	EnqueuedAt       string                     `json:"enqueuedAt"`
	DeadLetterReason string                     `json:"deadLetterReason,omitempty"`
}

// queuesCalls says what can be asked of the broker.
const queuesCalls = "the embedded queues take GET " + queuesPath + ", GET " + queuesPath + "/{queue}, GET " + queuesPath +
	"/{queue}/messages?limit= and POST " + queuesPath + "/{queue}/messages; a dead-letter queue is {queue}%2F$deadletterqueue"

// queueServer serves the broker over HTTP. The declared queues are there without a message, too.
type queueServer struct {
	*broker
	declared []string
}

func (b *broker) handler(declared []string) http.Handler {
	s := queueServer{b, declared}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+queuesPath, s.serveList)
	mux.HandleFunc("GET "+queuesPath+"/{$}", s.serveList)
	mux.HandleFunc("POST "+queuesPath+"/{queue}/messages", b.serveEnqueue)
	mux.HandleFunc("GET "+queuesPath+"/{queue}/messages", s.known(b.servePeek))
	mux.HandleFunc("GET "+queuesPath+"/{queue}", s.known(b.serveCounts))
	for path, allowed := range map[string]string{"": "GET", "/{$}": "GET", "/{queue}": "GET", "/{queue}/messages": "GET, POST"} {
		mux.HandleFunc(queuesPath+path, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Allow", allowed)
			problem(w, http.StatusMethodNotAllowed, fmt.Sprintf("%s does not take %s: %s", r.URL.Path, r.Method, queuesCalls))
		})
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		problem(w, http.StatusNotFound, fmt.Sprintf("there is no %s %s: %s", r.Method, r.URL.Path, queuesCalls))
	})
	return mux
}

// names returns the names of the queues that there are, in order.
func (s queueServer) names(ctx context.Context) ([]string, error) {
	names, err := s.queues(ctx)
	if err != nil {
		return nil, err
	}
	names = append(names, s.declared...)
	slices.Sort(names)
	return slices.Compact(names), nil
}

// known answers 404 for a queue that does not exist: a name that is misspelt would look empty for ever.
func (s queueServer) known(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		queue := r.PathValue("queue")
		if err := checkQueueName(queue); err != nil {
			problem(w, http.StatusBadRequest, err.Error())
			return
		}
		names, err := s.names(r.Context())
		if err != nil {
			problem(w, http.StatusInternalServerError, err.Error())
			return
		}
		if !slices.Contains(names, strings.TrimSuffix(queue, deadLetterSuffix)) {
			problem(w, http.StatusNotFound, fmt.Sprintf("there is no queue %s; there are %s", queue, strings.Join(names, ", ")))
			return
		}
		next(w, r)
	}
}

func (s queueServer) serveList(w http.ResponseWriter, r *http.Request) {
	names, err := s.names(r.Context())
	if err != nil {
		problem(w, http.StatusInternalServerError, err.Error())
		return
	}
	list := make([]map[string]any, len(names))
	for i, name := range names {
		c, err := s.counts(r.Context(), name)
		if err != nil {
			problem(w, http.StatusInternalServerError, err.Error())
			return
		}
		list[i] = c.wire(name)
	}
	answer(w, http.StatusOK, map[string]any{"queues": list})
}

func (b *broker) serveEnqueue(w http.ResponseWriter, r *http.Request) {
	queue := r.PathValue("queue")
	if err := checkQueueName(queue); err != nil {
		problem(w, http.StatusBadRequest, err.Error())
		return
	}
	if strings.HasSuffix(queue, deadLetterSuffix) {
		problem(w, http.StatusBadRequest, "nobody can send to a dead-letter queue")
		return
	}
	// Asking for JSON also keeps out the plain forms of a web page.
	if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media != "application/json" {
		problem(w, http.StatusUnsupportedMediaType, "the content type must be application/json")
		return
	}
	var body struct {
		Messages []wireMessage `json:"messages"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxEnqueueBytes)).Decode(&body); err != nil {
		status := http.StatusBadRequest
		if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		problem(w, status, "the body cannot be read: "+err.Error())
		return
	}
	if n := len(body.Messages); n == 0 || n > maxEnqueueMessages {
		problem(w, http.StatusBadRequest, fmt.Sprintf("%d messages, where 1 to %d are allowed", n, maxEnqueueMessages))
		return
	}
	messages := make([]message, len(body.Messages))
	for i, m := range body.Messages {
		if len(m.ID) == 0 || len(m.ID) > maxMessageID || !scalars(m.Properties) {
			problem(w, http.StatusBadRequest,
				fmt.Sprintf("message %d needs an id of 1 to %d bytes, and properties that are strings, numbers or booleans", i, maxMessageID))
			return
		}
		messages[i] = message{ID: m.ID, Subject: m.Subject, SessionID: m.SessionID, ContentType: m.ContentType, Body: m.Body, EnqueuedAt: m.NotBefore}
		if len(m.Properties) > 0 {
			messages[i].Properties = marshal(m.Properties)
		}
	}
	if err := b.enqueue(r.Context(), queue, messages); err != nil {
		problem(w, http.StatusInternalServerError, err.Error())
		return
	}
	answer(w, http.StatusCreated, map[string]int{"accepted": len(messages)})
}

func (b *broker) servePeek(w http.ResponseWriter, r *http.Request) {
	queue, limit := r.PathValue("queue"), defaultPeek
	if text := r.URL.Query().Get("limit"); text != "" {
		var err error
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxPeek {
			problem(w, http.StatusBadRequest, fmt.Sprintf("limit must be 1 to %d", maxPeek))
			return
		}
	}
	messages, err := b.peek(r.Context(), queue, limit)
	if err != nil {
		problem(w, http.StatusInternalServerError, err.Error())
		return
	}
	wire := make([]wireMessage, len(messages))
	for i, m := range messages {
		wire[i] = wireMessage{
			ID: m.ID, Subject: m.Subject, SessionID: m.SessionID, ContentType: m.ContentType, Body: m.Body,
			Properties: map[string]json.RawMessage{}, DeliveryCount: m.DeliveryCount, DeadLetterReason: m.DeadLetterReason,
			EnqueuedAt: m.EnqueuedAt.UTC().Format("2006-01-02T15:04:05.000Z"),
		}
		if m.Properties != nil {
			_ = json.Unmarshal(m.Properties, &wire[i].Properties) // it was checked when it came in
		}
	}
	answer(w, http.StatusOK, map[string]any{"messages": wire})
}

func (b *broker) serveCounts(w http.ResponseWriter, r *http.Request) {
	queue := r.PathValue("queue")
	c, err := b.counts(r.Context(), queue)
	if err != nil {
		problem(w, http.StatusInternalServerError, err.Error())
		return
	}
	answer(w, http.StatusOK, c.wire(queue))
}

func (c queueCounts) wire(queue string) map[string]any {
	return map[string]any{"queue": queue, "active": c.Active, "locked": c.Locked, "deadLetter": c.DeadLetter}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(marshal(v)) // the client may have gone
}

func problem(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_, _ = w.Write(marshal(map[string]any{"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": detail}))
}
