package azuretest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/messaging/azservicebus"

	"userconnectivity/handler/cosmosstore/cosmosfake"
	"userconnectivity/handler/eventlog"
	"userconnectivity/handler/internal/testkit"
	"userconnectivity/handler/queue"
	"userconnectivity/handler/servicebus/amqpstub"
)

// deliver has the host deliver a queue until the result is called; a failed batch is given back at once, as the
// extension does.
func (t *trigger) deliver() (end func()) {
	ctx, cancel := context.WithCancel(t.tb.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			batch, err := t.receiver.ReceiveMessages(ctx, batchSize, nil)
			if err != nil {
				return
			}
			status, err := t.to.request(ctx, "POST", "/"+t.function, envelope(batch), nil)
			for _, m := range batch {
				if err == nil && status == http.StatusOK {
					err = t.receiver.CompleteMessage(context.Background(), m, nil)
				} else {
					err = t.receiver.AbandonMessage(context.Background(), m, nil)
				}
				if err != nil && ctx.Err() == nil {
					t.tb.Errorf("settle: %v", err)
				}
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// giveUp has the broker give up n messages: they are delivered as often as it allows, and never settled.
func (t *trigger) giveUp(n, deliveries int) {
	t.tb.Helper()
	for left := n * deliveries; left > 0; {
		batch, err := t.receiver.ReceiveMessages(t.tb.Context(), batchSize, nil)
		if err != nil {
			t.tb.Fatal(err)
		}
		for _, m := range batch {
			if err := t.receiver.AbandonMessage(t.tb.Context(), m, nil); err != nil {
				t.tb.Fatal(err)
			}
		}
		left -= len(batch)
	}
}

// send sends a message to a queue, as a client of its own.
func (r *rig) send(name string, bodies map[string]string) {
	r.tb.Helper()
	client, err := azservicebus.NewClientFromConnectionString(r.broker.ConnectionString(), nil)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer client.Close(context.Background())
	sender, err := client.NewSender(name, nil)
	if err != nil {
		r.tb.Fatal(err)
	}
	for id, body := range bodies {
		if err := sender.SendMessage(r.tb.Context(), &azservicebus.Message{MessageID: &id, Body: []byte(body)}, nil); err != nil {
			r.tb.Fatalf("send %s of %d bytes: %v", id, len(body), err)
		}
	}
}

// withHeartbeats adds the queues of heartbeats.
func (r *rig) withHeartbeats() *rig {
	for _, name := range []string{queue.Heartbeats, queue.Heartbeats + queue.RejectedSuffix} {
		r.broker.CreateQueue(name, amqpstub.QueueOptions{DuplicateDetection: true, Lock: 5 * time.Minute})
	}
	return r
}

// says waits until the handler has logged a text.
func (h *handler) says(text string) {
	h.tb.Helper()
	wait(h.tb, "the log says "+text, func() (bool, any) { return strings.Contains(h.output.String(), text), "" })
}

// nothingThrownAway fails the test when anything of a queue was rejected or given up.
func (r *rig) nothingThrownAway(name string) {
	r.tb.Helper()
	rejected := r.broker.Queue(name + queue.RejectedSuffix).Messages
	if dead := r.broker.Queue(name).DeadLetter; dead > 0 || len(rejected) > 0 {
		r.tb.Errorf("%d dead letters of %s, %d rejected: %+v", dead, name, len(rejected), rejected)
	}
}

// TestEventsWaitForTheLog: the account is away in each of the ways in which it can be. Every event is applied and done
// in its first delivery, once it is back.
func TestEventsWaitForTheLog(t *testing.T) {
	t.Parallel()
	held := make(chan struct{})
	for name, fault := range map[string]cosmosfake.Fault{
		"unavailable":          {Status: http.StatusServiceUnavailable},
		"throttled":            {Status: http.StatusTooManyRequests, RetryAfter: 50 * time.Millisecond},
		"dropped":              {Drop: true},
		"silent":               {Hold: held},
		"key refused":          {Status: http.StatusUnauthorized},
		"role not granted yet": {Status: http.StatusForbidden},
		"not created yet":      {Status: http.StatusNotFound, Substatus: 1003},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			h := r.start()
			people := users("u", 10)
			h.beat(people, map[string]any{"ttlSeconds": 3600})
			messages := r.waitMessages(10)
			r.waitPath("detected queued", messages...)
			faulty := make(chan struct{}, 1)
			r.account.Faults(func(o cosmosfake.Operation) *cosmosfake.Fault {
				if o.Kind == "account" {
					return nil
				}
				select {
				case faulty <- struct{}{}:
				default:
				}
				return &fault
			})
			defer r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0).deliver()()
			if name == "silent" {
				<-faulty
				close(held)
			} else {
				h.says("events wait for a fault to pass")
			}
			r.account.Faults(nil)
			r.waitPath(whole, messages...)
			for _, user := range people {
				var u eventlog.UserDocument
				if !r.read("users", user, user, &u) || u.Status != "online" {
					t.Errorf("users record of %s: %+v", user, u)
				}
			}
			r.nothingThrownAway(eventsQueue)
		})
	}
}

// TestBeatsWaitForRedis: Redis is away in each of the ways in which it can be. Every beat of that time is applied.
func TestBeatsWaitForRedis(t *testing.T) {
	t.Parallel()
	configure := func(name, away, back string) func(*testing.T, *rig) func() {
		return func(t *testing.T, r *rig) func() {
			set := func(value string) {
				if err := r.redis.Client().ConfigSet(t.Context(), name, value).Err(); err != nil {
					t.Fatal(err)
				}
			}
			set(away)
			return func() { set(back) }
		}
	}
	for name, leave := range map[string]func(*testing.T, *rig) (back func()){
		"refused": func(t *testing.T, r *rig) func() {
			r.redis.Stop()
			return func() {
				if err := r.redis.Run(); err != nil {
					t.Fatal(err)
				}
			}
		},
		"silent": func(_ *testing.T, r *rig) func() {
			r.redis.Pause()
			return r.redis.Resume
		},
		"full":             configure("maxmemory", "1", "0"),
		"without replicas": configure("min-replicas-to-write", "1", "0"),
		"a replica": func(t *testing.T, r *rig) func() {
			if err := r.redis.Client().ReplicaOf(t.Context(), "127.0.0.1", "1").Err(); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := r.redis.Client().ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
					t.Fatal(err)
				}
			}
		},
		"busy": func(t *testing.T, r *rig) func() {
			admin, other := r.raw(), r.raw()
			if err := admin.ConfigSet(t.Context(), "busy-reply-threshold", "1").Err(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				other.Eval(t.Context(), "while true do end", nil) // until it is killed
			}()
			wait(t, "the server is busy", func() (bool, any) {
				err := admin.Ping(t.Context()).Err()
				return err != nil && strings.HasPrefix(err.Error(), "BUSY"), err
			})
			return func() {
				if err := admin.ScriptKill(t.Context()).Err(); err != nil {
					t.Fatal(err)
				}
				<-ended
			}
		},
		"a password that was rotated": func(t *testing.T, r *rig) func() {
			admin := r.raw()
			do := func(args ...any) {
				if err := admin.Do(t.Context(), args...).Err(); err != nil {
					t.Fatal(err)
				}
			}
			do("ACL", "SETUSER", "admin", "on", "nopass", "~*", "&*", "+@all")
			do("ACL", "SETUSER", "default", "resetpass", ">another")
			do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
			return func() { do("ACL", "SETUSER", "default", "nopass") }
		},
		"without a place to save": func(t *testing.T, r *rig) func() {
			admin := r.raw()
			set := func(name, value string) {
				if err := admin.ConfigSet(t.Context(), name, value).Err(); err != nil {
					t.Fatal(err)
				}
			}
			set("save", "3600 1")
			name := admin.ConfigGet(t.Context(), "dir").Val()["dir"] + "/" + admin.ConfigGet(t.Context(), "dbfilename").Val()["dbfilename"]
			if err := os.RemoveAll(name); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(name+"/in/the/way", 0o700); err != nil { // no file can be put there
				t.Fatal(err)
			}
			if err := admin.BgSave(t.Context()).Err(); err != nil {
				t.Fatal(err)
			}
			wait(t, "saving fails", func() (bool, any) {
				info := admin.Info(t.Context(), "persistence").Val()
				return strings.Contains(info, "rdb_last_bgsave_status:err"), info
			})
			return func() {
				set("stop-writes-on-bgsave-error", "no")
				set("save", "") // a server that has to save, and cannot, does not stop
			}
		},
		"without rights": func(t *testing.T, r *rig) func() {
			admin := r.redis.Client() // before the rights are gone
			allow := func(rules ...any) {
				if err := admin.Do(t.Context(), append([]any{"ACL", "SETUSER", "default"}, rules...)...).Err(); err != nil {
					t.Fatal(err)
				}
			}
			allow("-@scripting")
			return func() { allow("+@all") }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t).withHeartbeats()
			r.redis = testkit.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			r.env["REDIS_URL"] = r.redis.URL()
			h := r.start()
			people := users("u", 100)
			h.beat(people, map[string]any{"ttlSeconds": 600})
			r.waitMessages(100)

			back := leave(t, r)
			bodies := map[string]string{"junk": "junk"}
			for i, user := range people {
				bodies["m-"+user] = fmt.Sprintf(`{"user":%q,"ttlSeconds":600,"meta":{"n":%d}}`, user, i)
			}
			r.send(queue.Heartbeats, bodies)
			end := r.newTrigger(h, "HeartbeatMessages", queue.Heartbeats, 0).deliver()
			defer end()
			h.says("heartbeats of a queue wait for a fault to pass")
			if q := r.broker.Queue(queue.Heartbeats); q.Active+q.Locked != 101 {
				t.Errorf("while Redis is away: %+v", q)
			}
			back()
			wait(t, "the queue is empty", func() (bool, any) {
				q := r.broker.Queue(queue.Heartbeats)
				return q.Active+q.Locked+q.DeadLetter == 0, fmt.Sprintf("%d active, %d locked, %d dead", q.Active, q.Locked, q.DeadLetter)
			})
			for i, user := range people {
				var u struct {
					Status   string
					Sessions []struct{ Meta json.RawMessage }
				}
				h.call("GET", "/api/users/"+user, nil, &u)
				if want := fmt.Sprintf(`{"n":%d}`, i); u.Status != "online" || len(u.Sessions) != 1 || string(u.Sessions[0].Meta) != want {
					t.Errorf("%s: %+v, want meta %s", user, u, want)
				}
			}
			if rejected := r.broker.Queue(queue.Heartbeats + queue.RejectedSuffix).Messages; len(rejected) != 1 || string(rejected[0].Body) != "junk" {
				t.Errorf("rejected %+v", rejected)
			}
		})
	}
}

// TestNobodyIsOfflineWhoseBeatsKeptComing: Redis is away for less than the ttl. Users who beat over the queue are no
// worse off than those over HTTP.
func TestNobodyIsOfflineWhoseBeatsKeptComing(t *testing.T) {
	t.Parallel()
	r := newRig(t).withHeartbeats()
	r.redis = testkit.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	r.env["REDIS_URL"] = r.redis.URL()
	h := r.start()
	defer r.newTrigger(h, "HeartbeatMessages", queue.Heartbeats, 0).deliver()()
	over, direct := users("queue", 20), users("http", 20)
	began := time.Now()
	at := func(s float64) { time.Sleep(time.Duration(s*float64(time.Second)) - time.Since(began)) }
	beat := func(n int) {
		bodies := map[string]string{}
		for _, user := range over {
			bodies[fmt.Sprint(user, "-", n)] = fmt.Sprintf(`{"user":%q,"ttlSeconds":6}`, user)
		}
		r.send(queue.Heartbeats, bodies)
		for _, user := range direct {
			h.call("POST", "/api/heartbeat", map[string]any{"user": user, "ttlSeconds": 6}, nil)
		}
	}
	beat(0)
	r.waitMessages(40)
	at(0.5)
	r.redis.Stop()
	for n := 1; n <= 4; n++ {
		at(float64(n))
		beat(n)
	}
	at(4.5)
	if err := r.redis.Run(); err != nil {
		t.Fatal(err)
	}
	for n := 5; n <= 7; n++ {
		at(float64(n))
		beat(n)
	}
	at(8)
	offline := map[string]int{}
	for _, m := range r.broker.Queue(eventsQueue).Messages {
		if m.Subject == "user.offline" {
			offline[strings.TrimRight(m.SessionID, "-0123456789")]++
		}
	}
	if len(offline) > 0 {
		t.Errorf("reported offline: %v", offline)
	}
	r.nothingThrownAway(queue.Heartbeats)
}

// TestDeadLettersOfHeartbeats: what the broker gave up is applied, or put aside with its reason.
func TestDeadLettersOfHeartbeats(t *testing.T) {
	t.Parallel()
	r := newRig(t).withHeartbeats()
	h := r.start()
	r.send(queue.Heartbeats, map[string]string{"m-1": `{"user":"ann","ttlSeconds":600}`, "m-2": "junk"})
	r.newTrigger(h, "HeartbeatMessages", queue.Heartbeats, 0).giveUp(2, 10)
	r.newTrigger(h, "HeartbeatDeadLetters", queue.Heartbeats, azservicebus.SubQueueDeadLetter).work(2)
	var u struct{ Status string }
	if h.call("GET", "/api/users/ann", nil, &u); u.Status != "online" {
		t.Errorf("ann is %s", u.Status)
	}
	rejected := r.broker.Queue(queue.Heartbeats + queue.RejectedSuffix).Messages
	if len(rejected) != 1 || string(rejected[0].Body) != "junk" {
		t.Fatalf("rejected %+v", rejected)
	}
	reason := fmt.Sprint(rejected[0].Properties["reason"])
	says(t, reason, "not JSON", "MaxDeliveryCountExceeded")
}

// TestRejectedCopiesAlwaysFit: a message that can never succeed is put aside, whatever it is, and the events of its
// batch are done in their first delivery.
func TestRejectedCopiesAlwaysFit(t *testing.T) {
	t.Parallel()
	for name, junk := range map[string]string{
		"reason cut inside a character":    `{"specversion":"1.0","id":"x","source":"/x","type":"a` + strings.Repeat("é", 1000) + `"}`,
		"copy larger than the queue takes": strings.Repeat("x", 256<<10-120),
		"of wide characters":               strings.Repeat("é", 128<<10-60),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			h := r.start()
			r.send(eventsQueue, map[string]string{"junk": junk})
			h.beat(users("u", 10), map[string]any{"ttlSeconds": 3600})
			messages := r.waitMessages(11)[1:]
			r.waitPath("detected queued", messages...)
			defer r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0).deliver()()
			r.waitPath(whole, messages...)
			name := eventsQueue + queue.RejectedSuffix
			wait(t, "it is put aside", func() (bool, any) { n := len(r.broker.Queue(name).Messages); return n == 1, n })
			m := r.broker.Queue(name).Messages[0]
			if whole := string(m.Body) == junk; whole != (len(junk) < 100<<10) || !whole && (m.Properties["shortened"] != true || !strings.HasPrefix(junk, string(m.Body))) {
				t.Errorf("put aside as %d of %d bytes, %v", len(m.Body), len(junk), m.Properties)
			}
			if q := r.broker.Queue(eventsQueue); q.DeadLetter > 0 {
				t.Errorf("%d dead letters", q.DeadLetter)
			}
		})
	}
}

// TestRejectionWaitsForTheBroker: the queue of rejected messages is away. What is wrong is put aside once, when it is
// back.
func TestRejectionWaitsForTheBroker(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	h := r.start()
	h.beat([]string{"ann"}, map[string]any{"ttlSeconds": 3600})
	messages := r.waitMessages(1)
	r.waitPath("detected queued", messages...)
	r.send(eventsQueue, map[string]string{"junk": "junk"})
	r.gate.shut()
	defer r.newTrigger(h, "ConnectivityWorker", eventsQueue, 0).deliver()()
	r.waitPath(whole, messages...)
	h.says("service bus: send again")
	r.gate.open()
	wait(t, "it is put aside", func() (bool, any) {
		n := len(r.broker.Queue(eventsQueue + queue.RejectedSuffix).Messages)
		return n == 1, n
	})
	if q := r.broker.Queue(eventsQueue); q.DeadLetter > 0 {
		t.Errorf("%d dead letters", q.DeadLetter)
	}
}

// TestOneUserOfALaterVersion: in a batch over the queue. The others are online at once, the message is delivered once, and
// the beat of that user goes round until a process that knows the record applies it.
func TestOneUserOfALaterVersion(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.broker.CreateQueue(queue.Heartbeats, amqpstub.QueueOptions{Lock: 5 * time.Minute})
	r.broker.CreateQueue(queue.Heartbeats+queue.RejectedSuffix, amqpstub.QueueOptions{DuplicateDetection: true})
	r.env["REDIS_PARTITIONS"] = "1"
	h := r.start()
	h.beat([]string{"new"}, map[string]any{"ttlSeconds": 600})
	raw := r.raw()
	record := raw.Get(t.Context(), "uc{p0}new").Val()
	if !strings.HasPrefix(record, "a") {
		t.Fatalf("the record is %q", record)
	}
	set := func(text string) {
		if err := raw.Set(t.Context(), "uc{p0}new", text, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	set("b" + record[1:])
	bodies := map[string]string{"m-new": `{"user":"new","ttlSeconds":600,"meta":{"n":1}}`}
	people := users("u", 99)
	for _, user := range people {
		bodies["m-"+user] = fmt.Sprintf(`{"user":%q,"ttlSeconds":600}`, user)
	}
	r.send(queue.Heartbeats, bodies)
	defer r.newTrigger(h, "HeartbeatMessages", queue.Heartbeats, 0).deliver()()
	wait(t, "the beat is sent back twice, and nothing else is left", func() (bool, any) {
		q := r.broker.Queue(queue.Heartbeats)
		return len(q.Messages) == 1 && q.Messages[0].Sequence >= 102, fmt.Sprintf("%+v", q)
	})
	for _, user := range people {
		var u struct{ Status string }
		if h.call("GET", "/api/users/"+user, nil, &u); u.Status != "online" {
			t.Errorf("%s is %s", user, u.Status)
		}
	}
	set(record) // as if a process that knows the record had come
	var u struct {
		Sessions []struct{ Meta json.RawMessage }
	}
	wait(t, "the beat is applied", func() (bool, any) {
		h.call("GET", "/api/users/new", nil, &u)
		return len(u.Sessions) == 1 && string(u.Sessions[0].Meta) == `{"n":1}`, u
	})
	wait(t, "the queue is empty", func() (bool, any) {
		q := r.broker.Queue(queue.Heartbeats)
		return q.Active+q.Scheduled+q.Locked == 0, q.Active + q.Scheduled + q.Locked
	})
	r.nothingThrownAway(queue.Heartbeats)
}
