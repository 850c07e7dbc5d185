package main

import (
	"context"
	"time"
)

// hostBulks is how many bulks of 1,000 a second the real Functions host (4.1037) passed on to a handler with fixed
// answers, on two shared cores: about 2 ms of each bulk is the host's. It cannot be measured here.
const hostBulks = 487.0

// behindHost returns how many bulks a second get through host and handler, where the handler alone answers so many: both
// are on the same processors, so their times add up.
func behindHost(handler float64) float64 { return 1 / (1/hostBulks + 1/handler) }

// fixedAnswers is section H: the whole path of a bulk, and of one heartbeat after another over one connection, beside a
// handler that reads nothing but the body and answers a constant, in turns.
func fixedAnswers(ctx context.Context, p plan, r *report) error {
	redis, err := startRedis(ctx)
	if err != nil {
		return err
	}
	defer redis.stop()
	handler, err := startHandler(ctx, p, redis, "AzureWebJobs_ExpirationListener_Disabled=true")
	if err != nil {
		return err
	}
	defer handler.stop()
	fixed, err := startServer(emptyServer)(ctx, redis)
	if err != nil {
		return err
	}
	defer fixed.stop()
	var bulks, waits [2][]float64
	for range p.rounds {
		for i, server := range []*process{handler, fixed} {
			o, err := load{server.addr, bulkConnections, bulkBeats(users, bulkOf)}.run(ctx, p.round)
			if err != nil {
				return err
			}
			bulks[i] = append(bulks[i], o.rate())
			if o, err = (load{server.addr, 1, singleBeats(users, 1)}).run(ctx, p.round); err != nil {
				return err
			}
			waits[i] = append(waits[i], float64(quantile(o.times, 50)))
		}
	}
	ours, theirs := median(bulks[0]), median(bulks[1])
	r.ratioAtMost("H", "one connection, heartbeat after heartbeat, p50, to a handler with fixed answers", median(waits[0]), median(waits[1]), 3)
	r.ratio("H", "bulks of 1,000 behind the Functions host, to a handler with fixed answers", behindHost(ours), behindHost(theirs), 0.4, 0.6)
	r.figure("H", "bulks of 1,000 over HTTP, without a host", "%s calls/s; fixed answers %s calls/s", thousands(ours), thousands(theirs))
	r.figure("H", "one connection, p50", "%s; fixed answers %s", readable(time.Duration(median(waits[0]))), readable(time.Duration(median(waits[1]))))
	return nil
}
