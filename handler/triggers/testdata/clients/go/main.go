// Command openapiclient calls an app by the client that oapi-codegen makes from its contract: openapiclient URL
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, url string) error {
	key := func(_ context.Context, r *http.Request) error {
		r.Header.Set("x-functions-key", "test")
		return nil
	}
	c, err := NewClientWithResponses(url, WithRequestEditorFn(key))
	if err != nil {
		return err
	}
	ttl, groups, meta, laptop := 60, []Id{"facility:7"}, Meta{"app": "2.4.1"}, OptionalId("laptop")

	beat, err := c.HeartbeatWithResponse(ctx, nil, Heartbeat{User: "generated", TtlSeconds: &ttl, Groups: &groups, Meta: &meta})
	if err != nil {
		return err
	}
	if r := beat.JSON200; r == nil || r.Change != HeartbeatReceiptChangeOnline || r.Status != StatusOnline || r.Epoch == nil || r.ExpiresAt == nil || r.BeatAfterSeconds < 1 {
		return fmt.Errorf("heartbeat: %s %s", beat.Status(), beat.Body)
	}
	bulk, err := c.HeartbeatsWithResponse(ctx, nil, HeartbeatBatch{Heartbeats: []Heartbeat{{User: "generated", Session: &laptop}, {User: ""}}})
	if err != nil {
		return err
	}
	if r := bulk.JSON200; r == nil || r.Accepted != 1 || len(r.Rejected) != 1 || r.Rejected[0].Index != 1 {
		return fmt.Errorf("heartbeats: %s %s", bulk.Status(), bulk.Body)
	}
	user, err := c.UserWithResponse(ctx, "generated")
	if err != nil {
		return err
	}
	if u := user.JSON200; u == nil || len(u.Sessions) != 2 || u.LastSeen == nil || u.Groups[0] != "facility:7" || u.Stale != nil {
		return fmt.Errorf("user: %s %s", user.Status(), user.Body)
	}
	query, err := c.UsersQueryWithResponse(ctx, UserQuery{Users: []Id{"generated", "nobody"}})
	if err != nil {
		return err
	}
	if q := query.JSON200; q == nil || q.Users[0].Status != QueriedStatusOnline || q.Users[1].LastSeen != nil {
		return fmt.Errorf("query: %s %s", query.Status(), query.Body)
	}
	left, err := c.LeaveWithResponse(ctx, nil, Leave{User: "generated"})
	if err != nil {
		return err
	}
	leaves, err := c.LeavesWithResponse(ctx, nil, LeaveBatch{Leaves: []Leave{{User: "generated", Session: &laptop}}})
	if err != nil {
		return err
	}
	if left.StatusCode() != http.StatusNoContent || leaves.StatusCode() != http.StatusNoContent {
		return fmt.Errorf("leave: %s %s; leaves: %s %s", left.Status(), left.Body, leaves.Status(), leaves.Body)
	}
	limit := 1
	page, err := c.UserEventsWithResponse(ctx, "listed", &UserEventsParams{Limit: &limit})
	if err != nil {
		return err
	}
	if p := page.JSON200; p == nil || len(p.Events) != 1 || p.Continuation == nil || p.Events[0].User == nil || p.Events[0].History[0].Status != EventStatusDetected {
		return fmt.Errorf("events: %s %s", page.Status(), page.Body)
	}
	event, err := c.EventWithResponse(ctx, page.JSON200.Events[0].Id)
	if err != nil {
		return err
	}
	if event.JSON200 == nil || event.JSON200.Id != page.JSON200.Events[0].Id {
		return fmt.Errorf("event: %s %s", event.Status(), event.Body)
	}
	refused, err := c.HeartbeatWithResponse(ctx, nil, Heartbeat{User: "a b"})
	if err != nil {
		return err
	}
	if p := refused.ApplicationproblemJSON400; p == nil || p.Errors == nil || (*p.Errors)[0].Pointer != "/user" {
		return fmt.Errorf("a bad heartbeat: %s %s", refused.Status(), refused.Body)
	}
	return nil
}
