package loadtest

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/schollz/progressbar/v3"
	vegeta "github.com/tsenart/vegeta/v12/lib"
)

// Function is one of the three functions under load.
type Function int

// The functions: two with HTTP triggers and one on a queue.
const (
	Heartbeat         Function = iota // POST /api/heartbeat
	User                              // GET /api/users/{user}
	HeartbeatMessages                 // a heartbeat as a message on the queue heartbeats
	functions
)

func (f Function) String() string {
	return [functions]string{"Heartbeat", "User", "HeartbeatMessages"}[f]
}

// round is the mix: 10 HTTP invocations, half of them for each function, and 2 messages.
var round = [...]Function{Heartbeat, User, Heartbeat, User, Heartbeat, HeartbeatMessages, User, Heartbeat, User, Heartbeat, User, HeartbeatMessages}

// httpPerRound is how many HTTP invocations a round has.
const httpPerRound = 10

// target is the app under load.
type target struct {
	urls []string // of the app's processes, without /api
	key  string
	// message returns the request that sends a heartbeat as the k-th message; nil leaves messages out.
	message func(k int, beat []byte) (url string, body []byte)
	// drain waits until all messages are processed and returns how long that took, and what went wrong with
	// messages; nil when there is no queue to wait for.
	drain func(ctx context.Context) (took time.Duration, faults []string, err error)
	// limit bounds the time beyond that of the pace, for a design that hardly moves; 0 means no bound.
	limit time.Duration
}

// requestTimeout is when an invocation without an answer has failed.
const requestTimeout = 30 * time.Second

// attack sends all invocations and returns one sample for each.
func attack(ctx context.Context, o Options, design string, to target) ([]Sample, error) {
	mix := round[:]
	if to.message == nil {
		mix = []Function{Heartbeat, User}
	}
	total := o.Invocations
	rate := vegeta.Rate{Freq: o.Rate, Per: time.Second}
	if to.message != nil {
		total = o.Invocations / httpPerRound * len(round)
		rate = vegeta.Rate{Freq: o.Rate * len(round), Per: httpPerRound * time.Second}
	}
	if to.limit > 0 {
		if o.Rate > 0 {
			to.limit += time.Duration(o.Invocations/o.Rate) * time.Second
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, to.limit, errEnough)
		defer cancel()
	}
	client := &http.Client{Timeout: requestTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: o.Workers}}
	defer client.CloseIdleConnections()
	workers := uint64(max(o.Workers, 1))
	attacker := vegeta.NewAttacker(vegeta.Client(client), vegeta.Workers(workers), vegeta.MaxWorkers(workers))
	stop := context.AfterFunc(ctx, func() { attacker.Stop() })
	defer stop()

	bar := progressbar.NewOptions(total, progressbar.OptionSetVisibility(o.Progress != nil), progressbar.OptionSetWriter(o.Progress),
		progressbar.OptionSetDescription(design), progressbar.OptionShowCount(), progressbar.OptionShowIts(), progressbar.OptionSetItsString("calls"),
		progressbar.OptionThrottle(100*time.Millisecond), progressbar.OptionClearOnFinish())
	samples := make([]Sample, 0, total)
	began := time.Now()
	for r := range attacker.Attack(to.targeter(o, mix), bounded{rate, uint64(total)}, 0, "") {
		samples = append(samples, Sample{
			Function: functionOf(r), At: r.Timestamp.Sub(began), Latency: r.Latency, Error: kindOf(r),
		})
		_ = bar.Add(1) // a progress bar that fails is no fault
	}
	_ = bar.Finish()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	return samples, nil
}

// bounded is a steady pace that ends after a number of invocations.
type bounded struct {
	vegeta.ConstantPacer
	total uint64
}

func (b bounded) Pace(elapsed time.Duration, sent uint64) (wait time.Duration, stop bool) {
	if sent >= b.total {
		return 0, true
	}
	return b.ConstantPacer.Pace(elapsed, sent)
}

// errEnough ends a run at its limit; what was measured until then counts.
var errEnough = errors.New("the time of the run is over")

// targeter makes the requests, in the order of the mix.
func (t target) targeter(o Options, mix []Function) vegeta.Targeter {
	var n atomic.Int64
	var sent [functions]atomic.Int64
	header := http.Header{"Content-Type": {"application/json"}}
	if t.key != "" {
		header.Set("x-functions-key", t.key)
	}
	return func(v *vegeta.Target) error {
		i := int(n.Add(1) - 1)
		f := mix[i%len(mix)]
		k := int(sent[f].Add(1) - 1)
		base := t.urls[k%len(t.urls)] // each function is spread over all processes
		v.Header = header
		switch f {
		case Heartbeat:
			v.Method, v.URL, v.Body = http.MethodPost, base+"/api/heartbeat", beat(k%o.Users)
		case User: // one that has beaten a moment ago; the first ones ask for users that are not known yet
			k = (k + 2*o.Users - min(2*o.Workers, o.Users)) % o.Users
			v.Method, v.URL = http.MethodGet, base+"/api/users/"+userName(k)
		case HeartbeatMessages:
			v.Method = http.MethodPost
			v.URL, v.Body = t.message(k, beat(k*5%o.Users))
		}
		return nil
	}
}

func userName(k int) string { return "load-" + strconv.Itoa(k) }

func beat(k int) []byte { return []byte(`{"user":"` + userName(k) + `"}`) }

// functionOf tells which function a result is of.
func functionOf(r *vegeta.Result) Function {
	switch {
	case r.Method == http.MethodGet:
		return User
	case strings.HasSuffix(r.URL, "/api/heartbeat"):
		return Heartbeat
	}
	return HeartbeatMessages
}

// maxKind bounds the text of an error, in bytes.
const maxKind = 160

// varying is what differs between errors of one kind: where a request went, ports, and users.
var varying = regexp.MustCompile(`^\w+ "[^"]*": |[0-9.]+:[0-9]+(->[0-9.]+:[0-9]+)?:? |load-[0-9]+ `)

// kindOf names the error of a result, "" when it succeeded. Errors of one kind have one name, to be counted.
func kindOf(r *vegeta.Result) string {
	text := r.Error
	var problem struct {
		Detail string `json:"detail"`
	}
	if text != "" && json.Unmarshal(r.Body, &problem) == nil && problem.Detail != "" {
		text += ": " + problem.Detail
	}
	text = varying.ReplaceAllString(text, "")
	return strings.ToValidUTF8(text[:min(len(text), maxKind)], "")
}
