package azuretest

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"userconnectivity/handler/cosmosstore/cosmosfake"
	"userconnectivity/handler/servicebus/amqpstub"
)

var (
	loseAck = amqpstub.Fault{On: amqpstub.OnSend, Queue: eventsQueue, Kind: amqpstub.LoseAck}
	busy    = amqpstub.ServerBusy(eventsQueue)
)

// refuseAttach has the broker refuse every link to the queue.
func refuseAttach(condition, description string) amqpstub.Fault {
	return amqpstub.Fault{On: amqpstub.OnAttach, Queue: eventsQueue, Kind: amqpstub.Reject, Condition: condition, Description: description, Times: amqpstub.Forever}
}

// noSend is how Service Bus refuses somebody without the right to send.
var noSend = refuseAttach("amqp:unauthorized-access", "Unauthorized access. 'Send' claim(s) are required to perform this operation.")

// says checks that a text for people has all these parts, and no secret.
func says(tb testing.TB, text string, parts ...string) {
	tb.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			tb.Errorf("%q\ndoes not say %q", text, part)
		}
	}
	for _, secret := range []string{amqpstub.Key, accountKey, wrongKey, clientSecret} {
		if strings.Contains(text, secret) {
			tb.Errorf("%q\ntells a secret", text)
		}
	}
}

// nobody is a name that no server can have: it is too long for the network to be asked.
var nobody = strings.Repeat("x", 64)

const clientSecret = "the-secret-of-the-app-registration"

var wrongKey = base64.StdEncoding.EncodeToString([]byte("not the key of the account"))

// badSetting is a deployment with something wrong in it. The events wait in the outbox, health tells how many and what
// to do, and they arrive once that was done.
type badSetting struct {
	account cosmosfake.Config
	// spoil makes it wrong and returns settings of the handler.
	spoil func(*rig) []string
	// part of health that tells, and what it says.
	part string
	want []string
	// mend makes it right while the handler runs. Without it, only another start with other settings does.
	mend func(*rig)
	// flows: the events do not wait.
	flows bool
}

func (b badSetting) run(t *testing.T) {
	t.Parallel()
	b.check(t, newRigWith(t, b.account))
}

func (b badSetting) check(t *testing.T, r *rig) {
	t.Helper()
	settings := b.spoil(r)
	h := r.start(settings...)
	const n = 3
	waiting := float64(n)
	if b.flows {
		waiting = 0
	}
	h.beat(users("u", n), map[string]any{"ttlSeconds": 600})
	p := h.waitHealth("health tells", func(p health) bool {
		return p.Status == "degraded" && p.number("listener", "outboxDepth") == waiting && p.number("queue", "waiting") == waiting &&
			strings.Contains(p.detail(b.part), b.want[0])
	})
	t.Logf("%s: %s", b.part, p.detail(b.part))
	says(t, p.detail(b.part), b.want...)
	says(t, h.output.String())
	if b.mend != nil {
		b.mend(r)
	} else if !b.flows {
		h.kill()
		h = r.start()
	}
	r.waitPath("detected queued", r.waitMessages(n)...)
	if b.mend != nil {
		h.waitHealth("all is well", func(p health) bool { return p.Status == "ok" })
	}
}

func TestBadSettings(t *testing.T) {
	t.Parallel()
	for name, b := range map[string]badSetting{
		"namespace that does not exist": {
			spoil: func(*rig) []string {
				return []string{"ServiceBusConnection=Endpoint=sb://" + nobody + ".servicebus.windows.net/;SharedAccessKeyName=n;SharedAccessKey=" + amqpstub.Key}
			},
			part: "queue", want: []string{"there is no such host", nobody + ".servicebus.windows.net", "3 events wait", "az servicebus namespace list"},
		},
		"queue that does not exist": {
			spoil: func(r *rig) []string { r.broker.DeleteQueue(eventsQueue); return nil },
			part:  "queue", want: []string{"there is no such queue or topic", "queue " + eventsQueue, "3 events wait", "Config.json"},
			mend: func(r *rig) { r.broker.CreateQueue(eventsQueue, amqpstub.QueueOptions{DuplicateDetection: true}) },
		},
		"wrong key of the namespace": {
			spoil: func(r *rig) []string { r.broker.RequireKey(amqpstub.KeyName, "another key"); return nil },
			part:  "queue", want: []string{"the key of the authorization rule " + amqpstub.KeyName + " is wrong", "az servicebus namespace authorization-rule keys list"},
			mend: func(r *rig) { r.broker.RequireKey(amqpstub.KeyName, amqpstub.Key) },
		},
		"rule without the right to send": {
			spoil: func(r *rig) []string { r.broker.Plan(noSend); return nil },
			part:  "queue", want: []string{amqpstub.KeyName + " may not send", "az servicebus namespace authorization-rule update", "--rights Send"},
			mend: func(r *rig) { r.broker.ClearFaults() },
		},
		"expired token of the namespace": {
			spoil: func(r *rig) []string {
				r.broker.Plan(amqpstub.Fault{
					On: amqpstub.OnToken, Kind: amqpstub.Reject, Times: amqpstub.Forever,
					Description: "ExpiredToken: The token is expired. Expiration time: '2026-01-01 00:00:00Z'.",
				})
				return nil
			},
			part: "queue", want: []string{"the token is expired", "set the clock"},
			mend: func(r *rig) { r.broker.ClearFaults() },
		},
		"queue that is off": {
			spoil: func(r *rig) []string {
				r.broker.Plan(refuseAttach("com.microsoft:entity-disabled", "Messaging entity is currently disabled."))
				return nil
			},
			part: "queue", want: []string{"it is disabled", "az servicebus queue update", "--status Active"},
			mend: func(r *rig) { r.broker.ClearFaults() },
		},
		"queue that is full": {
			spoil: func(r *rig) []string {
				r.broker.Plan(amqpstub.Fault{
					On: amqpstub.OnSend, Kind: amqpstub.Reject, Condition: "amqp:resource-limit-exceeded",
					Description: "The maximum entity size has been reached.", Times: amqpstub.Forever,
				})
				return nil
			},
			part: "listener", want: []string{"it is full", "events wait in the outbox", "az servicebus queue show"},
			mend: func(r *rig) { r.broker.ClearFaults() },
		},
		"wrong key of the account": {
			spoil: func(*rig) []string { return []string{"COSMOS_KEY=" + wrongKey} },
			part:  "eventLog", want: []string{"account 127 refused COSMOS_KEY (401)", "az cosmosdb keys list --name 127"},
		},
		"key of the account that is no key": {
			spoil: func(*rig) []string { return []string{"COSMOS_KEY=not base64"} },
			part:  "eventLog", want: []string{"it is not base64", "COSMOS_KEY", "az cosmosdb keys list --name 127"},
		},
		"account that does not exist": {
			spoil: func(*rig) []string {
				return []string{"COSMOS_ENDPOINT=https://" + nobody + ".documents.azure.com:443/"}
			},
			part: "eventLog", want: []string{nobody + ".documents.azure.com", "no such host", "cannot be reached", "az cosmosdb show --name " + nobody},
		},
		"database that does not exist": {
			spoil: func(*rig) []string { return []string{"COSMOS_DATABASE=other"} },
			part:  "eventLog", want: []string{"database other does not exist", "az cosmosdb sql database create --account-name 127", "--name other"},
		},
		"container that does not exist": {
			spoil: func(r *rig) []string {
				r.account.CreateContainer("half", "users", "/id", 0)
				return []string{"COSMOS_DATABASE=half"}
			},
			part: "eventLog", want: []string{"container events of database half does not exist", "az cosmosdb sql container create", "--partition-key-path /pk"},
		},
		"container with another partition key": {
			spoil: func(r *rig) []string { r.account.CreateContainer(database, "users", "/user", 0); return nil },
			part:  "eventLog", want: []string{"container users", "partition key [/user]", "az cosmosdb sql container create"},
			mend: func(r *rig) { r.account.CreateContainer(database, "users", "/id", 0) }, flows: true,
		},
		"firewall of the account": {
			spoil: func(r *rig) []string {
				r.account.Faults(func(cosmosfake.Operation) *cosmosfake.Fault {
					return &cosmosfake.Fault{Status: 403, Message: "Request blocked by your Cosmos DB account firewall settings."}
				})
				return nil
			},
			part: "eventLog", want: []string{"the firewall of the account", "az cosmosdb update --name 127"},
			mend: func(r *rig) { r.account.Faults(nil) },
		},
		"clock that the account finds an hour off": {
			account: cosmosfake.Config{Ahead: time.Hour},
			spoil:   func(*rig) []string { return nil },
			part:    "eventLog", want: []string{"the clock of this machine is 1h0m0s behind that of account 127", "timedatectl"},
			mend: func(r *rig) { r.account.SetAhead(0) },
		},
		"clock of an hour before that of Redis": {
			spoil: func(r *rig) []string { r.clockOfRedis(time.Hour); return nil },
			part:  "clock", want: []string{"the clock of this machine is 1h0m0s behind that of Redis", "Deadlines keep to the clock of Redis", "az functionapp restart", "--name app"},
			flows: true,
		},
	} {
		t.Run(name, b.run)
	}
}

// clockOfRedis sets the clock of one partition in Redis forward, as only tests do.
func (r *rig) clockOfRedis(d time.Duration) {
	r.tb.Helper()
	client := redis.NewClient(&redis.Options{Addr: r.redis.Addr})
	defer client.Close()
	if err := client.HSet(r.tb.Context(), "uc{p0}/meta", "offset", d.Milliseconds()).Err(); err != nil {
		r.tb.Fatal(err)
	}
}

// TestSettingsThatCannotBeRead are told by the first lines of the log, which name the setting. They do not end the
// handler: the host would stop the whole app, with all that needs none of them.
func TestSettingsThatCannotBeRead(t *testing.T) {
	t.Parallel()
	r := &rig{tb: t, env: map[string]string{}}
	for name, c := range map[string]struct {
		setting string
		want    []string
	}{
		"connection string without an endpoint": {
			"ServiceBusConnection=SharedAccessKeyName=n;SharedAccessKey=" + wrongKey,
			[]string{"ServiceBusConnection must be", "it has no Endpoint", "Endpoint=sb://name.servicebus.windows.net/"},
		},
		"connection string without a key": {"ServiceBusConnection=Endpoint=sb://contoso.servicebus.windows.net/", []string{"ServiceBusConnection must be", "SharedAccessKey"}},
		"namespace that is a URL": {
			"ServiceBusConnection__fullyQualifiedNamespace=https://contoso.servicebus.windows.net",
			[]string{"ServiceBusConnection__fullyQualifiedNamespace must be", "it is a URL", "name.servicebus.windows.net"},
		},
		"account without a scheme": {"COSMOS_ENDPOINT=contoso.documents.azure.com", []string{"COSMOS_ENDPOINT must be", "no https:// in front", "https://name.documents.azure.com:443/"}},
		"queue with a blank":       {"EVENTS_QUEUE=my queue", []string{"EVENTS_QUEUE", "for example EVENTS_QUEUE=connectivity-events"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := r.command("FUNCTIONS_CUSTOMHANDLER_PORT=0", "DATA_DIR="+t.TempDir(), c.setting)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = cmd.Process.Kill()
				_ = cmd.Wait()
			})
			var before strings.Builder // the handler says that it has started
			for lines := bufio.NewScanner(out); lines.Scan() && !strings.Contains(lines.Text(), "handler started"); {
				fmt.Fprintln(&before, lines.Text())
			}
			says(t, before.String(), append(c.want, `"level":"ERROR"`)...)
		})
	}
	t.Run("port", func(t *testing.T) { // nobody could ask it what is wrong
		t.Parallel()
		out, err := r.command("FUNCTIONS_CUSTOMHANDLER_PORT=http", "DATA_DIR="+t.TempDir()).CombinedOutput()
		exit, ok := err.(*exec.ExitError)
		if !ok || exit.ExitCode() != 1 {
			t.Fatalf("ended with %v\n%s", err, out)
		}
		says(t, string(out), "settings: FUNCTIONS_CUSTOMHANDLER_PORT must be")
	})
}
