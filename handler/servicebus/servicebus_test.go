package servicebus

import (
	"context"
	"fmt"
	"testing"
	"time"

	"userconnectivity/handler/queue"
	"userconnectivity/handler/servicebus/amqpstub"
)

func TestSmoke(t *testing.T) {
	b := amqpstub.Start(t)
	b.CreateQueue("q", amqpstub.QueueOptions{DuplicateDetection: true})
	s, err := New(Config{ConnectionString: b.ConnectionString(), SendTimeout: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	t0 := time.Now()
	if err := s.Ping(ctx, "q"); err != nil {
		t.Fatal(err)
	}
	t.Log("ping", time.Since(t0))
	t0 = time.Now()
	if err := s.Send(ctx, "q", []queue.Message{{ID: "a", Subject: "s", SessionID: "u", ContentType: "ct", Properties: map[string]any{"n": int64(7), "b": true, "s": "x"}, Body: []byte("hello")}}); err != nil {
		t.Fatal(err)
	}
	t.Log("send", time.Since(t0))
	var msgs []queue.Message
	for i := range 1000 {
		msgs = append(msgs, queue.Message{ID: fmt.Sprint("m", i), Body: make([]byte, 500)})
	}
	t0 = time.Now()
	for r := range 10 {
		for i := range msgs {
			msgs[i].ID = fmt.Sprint("m", r, "-", i)
		}
		if err := s.Send(ctx, "q", msgs); err != nil {
			t.Fatal(err)
		}
	}
	t.Log("10000 in", time.Since(t0))
	t.Logf("%+v", b.Stats())
	q := b.Queue("q")
	t.Logf("%+v", q.Messages[0])
	t.Log(q.Active, q.Duplicates)
	t.Log(b.Tokens()[0])
	t0 = time.Now()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	t.Log("close", time.Since(t0))
	b.Wait("x", func(s amqpstub.Stats) bool { return s.Open == 0 })
}
