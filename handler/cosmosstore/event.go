package cosmosstore

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/data/azcosmos"
	"golang.org/x/sync/errgroup"

	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/presence"
)

// eventsKeyPath is the partition key of the container of events: the first part of an event's id.
const eventsKeyPath = "/pk"

// maxAppended bounds the steps of a patch: the service takes ten operations, and the status needs two.
const maxAppended = 8

const userEventsQuery = "SELECT * FROM c WHERE c.user = @user ORDER BY c.epoch DESC"

// eventDocument is an event in its container.
type eventDocument struct {
	eventlog.Document
	// Fresh tells that the history is what the relay writes, detected and queued and nothing else, so that steps of a
	// delivery may be appended without reading it.
	Fresh bool `json:"fresh,omitempty"`
}

// Write adds the steps of each update to the history of its event, and makes the record where there is none. Each
// event is written by itself, InFlight at a time: after an error some may be written, and repeating the whole call is
// harmless. What the account refuses because of its content, as a meta that is nested deeper than 128 levels, is written
// without that content; see eventlog.Document.Reduced. It returns a *eventlog.RefusedError for events that the account
// never takes, in no form; the others are written. The first error that concerns all of them ends the call.
func (s *Store) Write(ctx context.Context, updates []eventlog.Update) error {
	ctx, done := s.begin(ctx)
	defer done()
	updates, refused := eventlog.Combine(updates)
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(s.config.InFlight)
	for _, u := range updates {
		group.Go(func() error {
			err := s.merge(ctx, u)
			if !isRefusal(err) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			refused = append(refused, eventlog.Refusal{ID: u.Event.ID, Err: err})
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return eventlog.Refused(refused)
}

// merge writes one update the cheapest way that can be right, and goes on with what the refusal tells.
func (s *Store) merge(ctx context.Context, u eventlog.Update) error {
	created, err := newEventDocument(eventlog.Record{Event: u.Event}, u)
	if err != nil {
		return err
	}
	appended := appendable(u)
	way := s.replaceEvent
	switch {
	case u.Event.Type == "":
	case created.Fresh:
		way = s.createEvent
	case appended != nil:
		way = s.patchEvent
	}
	w := eventWrite{update: u, created: created, appended: appended}
	for refusals := 0; ; refusals++ {
		err := way(ctx, &w)
		switch {
		case isStatus(err, http.StatusNotFound):
			if u.Event.Type == "" {
				return nil
			}
			way = s.createEvent
		case isStatus(err, http.StatusConflict) || isStatus(err, http.StatusPreconditionFailed):
			w.session = session(err)
			way = s.replaceEvent
		case isRefusal(err) && w.reduce(err):
		default:
			return err
		}
		if err := pause(ctx, refusals); err != nil {
			return fmt.Errorf("write event %s: %w: another writer came in between each time: %w", u.Event.ID, eventlog.ErrUnavailable, err)
		}
	}
}

// eventWrite is an update on its way into the container.
type eventWrite struct {
	update  eventlog.Update
	created eventDocument
	// appended are the steps to append to a fresh document.
	appended []eventlog.Step
	// session is the token of the refusal before.
	session *string
	// reduced is how much of the event is left out because the account refused it for reason.
	reduced int
	reason  string
}

// reduce has the next try leave more of the event out, and reports whether there is anything that could be.
func (w *eventWrite) reduce(refusal error) bool {
	e := w.update.Event
	w.reason = fmt.Sprintf("the account refused it (%d)", status(refusal))
	for w.reduced < eventlog.MaxReduced {
		w.reduced++
		if w.reduced == 1 && len(e.Meta) > 0 || w.reduced == 2 && len(e.Groups)+len(e.Sessions) > 0 {
			return true
		}
	}
	return false
}

func newEventDocument(r eventlog.Record, u eventlog.Update) (eventDocument, error) {
	r, _ = r.Merge(u)
	d, err := eventlog.NewDocument(r)
	return eventDocument{Document: d, Fresh: isFresh(d)}, err
}

// isFresh tells whether the history is the one that the relay writes.
func isFresh(d eventlog.Document) bool {
	h := d.History
	return len(h) == 2 && isDetected(h[0], d.DetectedAt) && h[1].Status == eventlog.Queued && h[1].Attempt == eventlog.Attempt{}
}

func isDetected(s eventlog.Step, at time.Time) bool {
	return s.Status == eventlog.Detected && s.Attempt == eventlog.Attempt{} && s.Detail == "" && s.At.Equal(at.Truncate(time.Millisecond))
}

// appendable returns the steps that u adds to a fresh document, nil when they are not simply the end of its history:
// all but detected belong to deliveries.
func appendable(u eventlog.Update) []eventlog.Step {
	steps, _ := eventlog.Merge(nil, u.Steps)
	if len(steps) > 0 && isDetected(steps[0], u.Event.DetectedAt) {
		steps = steps[1:]
	}
	if len(steps) == 0 || len(steps) > maxAppended || steps[0].Attempt.Compare(eventlog.Attempt{}) <= 0 {
		return nil
	}
	// Redeliveries and replays rarely find the document fresh.
	if steps[0].Attempt.Compare(eventlog.Attempt{Delivery: 1}) > 0 {
		return nil
	}
	return steps
}

func (s *Store) createEvent(ctx context.Context, w *eventWrite) error {
	d := w.created
	d.Document = d.Reduced(w.reduced, w.reason)
	text, err := eventlog.Marshal(d)
	if err != nil {
		return &refusal{text: "the event cannot be written as JSON: " + err.Error(), cause: err}
	}
	_, err = s.onEvents(ctx, "create", w.created.ID, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		return c.CreateItem(ctx, pk, text, nil)
	})
	return err
}

// patchEvent appends to a fresh document of the same copy of the event.
func (s *Store) patchEvent(ctx context.Context, w *eventWrite) error {
	var patch azcosmos.PatchOperations
	patch.SetCondition(fmt.Sprintf("from c where c.fresh = true and c.epoch = %d", w.created.Epoch))
	for _, step := range w.appended {
		text, err := eventlog.Marshal(step)
		if err != nil {
			return err
		}
		patch.AppendAdd("/history/-", json.RawMessage(text))
	}
	patch.AppendSet("/status", w.created.Status)
	patch.AppendSet("/fresh", false)
	_, err := s.onEvents(ctx, "patch", w.created.ID, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		return c.PatchItem(ctx, pk, w.created.ID, patch, nil)
	})
	return err
}

// merge returns the document with u merged in, and whether that changed anything.
func (d eventDocument) merge(u eventlog.Update) (eventDocument, bool, error) {
	next, changed, err := d.Document.Merge(u)
	return eventDocument{Document: next, Fresh: isFresh(next)}, changed, err
}

// replaceEvent reads the document, merges, and replaces the version that it read. Members that this version does not
// know stay.
func (s *Store) replaceEvent(ctx context.Context, w *eventWrite) error {
	old, err := s.readEvent(ctx, w.created.ID, w.session)
	if err != nil {
		return err
	}
	var d eventDocument
	if err := eventlog.Unmarshal(old.Value, &d); err != nil {
		return &refusal{text: "what is stored cannot be read by this version: " + err.Error(), cause: err}
	}
	next, changed, err := d.merge(w.update)
	if err != nil || !changed {
		return err
	}
	next.Document = next.Reduced(w.reduced, w.reason)
	text, err := eventlog.Overlay(old.Value, d, next)
	if err != nil {
		return &refusal{text: "the event cannot be written as JSON: " + err.Error(), cause: err}
	}
	_, err = s.onEvents(ctx, "replace", next.ID, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		return c.ReplaceItem(ctx, pk, next.ID, text, &azcosmos.ItemOptions{IfMatchEtag: &old.ETag})
	})
	return err
}

func (s *Store) readEvent(ctx context.Context, id string, session *string) (azcosmos.ItemResponse, error) {
	return s.onEvents(ctx, "read", id, func(ctx context.Context, c *azcosmos.ContainerClient, pk azcosmos.PartitionKey) (azcosmos.ItemResponse, error) {
		return c.ReadItem(ctx, pk, id, &azcosmos.ItemOptions{SessionToken: session})
	})
}

// onEvents runs one request on the event of that id.
func (s *Store) onEvents(ctx context.Context, verb, id string, do onDocument) (azcosmos.ItemResponse, error) {
	pk, ok := presence.PartitionKeyOf(id)
	if !ok {
		return azcosmos.ItemResponse{}, eventlog.ErrID
	}
	return s.document(ctx, operation{"event " + verb, verb + " event " + id, s.config.Containers.Events}, pk, do)
}

// Event returns one event with its history, or eventlog.ErrNotFound.
func (s *Store) Event(ctx context.Context, id string) (eventlog.Record, error) {
	ctx, done := s.begin(ctx)
	defer done()
	if _, ok := presence.PartitionKeyOf(id); !ok {
		return eventlog.Record{}, fmt.Errorf("read event %.40q: %w", id, eventlog.ErrNotFound)
	}
	answer, err := s.readEvent(ctx, id, nil)
	if isStatus(err, http.StatusNotFound) {
		err = fmt.Errorf("read event %s: %w", id, eventlog.ErrNotFound)
	}
	if err != nil {
		return eventlog.Record{}, err
	}
	var d eventDocument
	if err := eventlog.Unmarshal(answer.Value, &d); err != nil {
		return eventlog.Record{}, fmt.Errorf("read event %s: %w", id, err)
	}
	return d.Record(), nil
}

// UserEvents returns a page of a user's events, the highest epoch first. A limit below 1 is 1. Only a page with a
// continuation is sure to be full; the last page may be empty. It returns eventlog.ErrContinuation for a continuation
// that it did not make for this user.
func (s *Store) UserEvents(ctx context.Context, user string, limit int, continuation string) (eventlog.Page, error) {
	ctx, done := s.begin(ctx)
	defer done()
	options := azcosmos.QueryOptions{
		QueryParameters:                    []azcosmos.QueryParameter{{Name: "@user", Value: user}},
		ResponseContinuationTokenLimitInKB: 1, // it travels in a URL
	}
	if continuation != "" {
		token, err := eventlog.Position(user, continuation)
		if err != nil {
			return eventlog.Page{}, err
		}
		options.ContinuationToken = &token
	}
	limit = max(limit, 1)
	var page eventlog.Page
	for {
		options.PageSizeHint = int32(min(limit-len(page.Records), 1000)) // the service may return fewer
		answer, err := s.queryEvents(ctx, user, options)
		if isRefusal(err) && continuation != "" {
			return eventlog.Page{}, fmt.Errorf("read events of user %s: %w", user, eventlog.ErrContinuation)
		}
		if err != nil {
			return eventlog.Page{}, err
		}
		for _, text := range answer.Items {
			var d eventDocument
			if err := eventlog.Unmarshal(text, &d); err != nil {
				return eventlog.Page{}, fmt.Errorf("read events of user %s: %w", user, err)
			}
			page.Records = append(page.Records, d.Record())
		}
		if answer.ContinuationToken == nil {
			return page, nil
		}
		if len(page.Records) >= limit {
			page.Continuation = eventlog.Continuation(user, *answer.ContinuationToken)
			return page, nil
		}
		options.ContinuationToken = answer.ContinuationToken
	}
}

func (s *Store) queryEvents(ctx context.Context, user string, options azcosmos.QueryOptions) (azcosmos.QueryItemsResponse, error) {
	op := operation{"event query", "read events of user " + user, s.config.Containers.Events}
	pk := azcosmos.NewPartitionKeyString(presence.PartitionKey(user))
	return call(ctx, s, op, func(ctx context.Context, c *client) (azcosmos.QueryItemsResponse, error) {
		container, err := c.azure.NewContainer(s.config.Database, op.container)
		if err != nil {
			return azcosmos.QueryItemsResponse{}, err
		}
		return container.NewQueryItemsPager(userEventsQuery, pk, &options).NextPage(ctx)
	})
}

// pause lets the writers of one document go apart: not at all at first, later up to 50 ms.
func pause(ctx context.Context, refusals int) error {
	if refusals < 2 {
		return nil
	}
	timer := time.NewTimer(time.Duration(rand.Int64N(int64(min(refusals, 10)) * int64(5*time.Millisecond))))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// list returns an empty list for none, as a patch cannot set what is not there.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}
