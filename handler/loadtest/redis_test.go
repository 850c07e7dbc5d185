package loadtest

import (
	"testing"

	"github.com/redis/go-redis/v9"
)

func TestWatchSeesEveryClient(t *testing.T) {
	t.Parallel()
	url, server, err := startRedis(t.Context(), t.TempDir(), 5)
	if err != nil {
		t.Fatal(err)
	}
	defer server.stop()
	w, err := watchClients(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	var refused int
	for range 6 { // four of them get in beside the watch
		client, err := oneConnection(url)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		client.Options().MaxRetries = -1
		if err := client.Ping(t.Context()).Err(); err != nil {
			refused++
		}
	}
	var r Result
	if err := w.finish(t.Context(), &r); err != nil {
		t.Fatal(err)
	}
	if refused != 2 || r.Opened != 4 || r.Refused < 2 || r.MaxClients != 5 || r.MostClients() > 5 {
		t.Errorf("%d were refused; opened %d, refused %d, limit %d, most %d", refused, r.Opened, r.Refused, r.MaxClients, r.MostClients())
	}
	info, err := w.info(t.Context())
	if err != nil || info["connected_clients"] != 5 {
		t.Errorf("%d clients, %v", info["connected_clients"], err)
	}
}

func TestOneConnectionIsOne(t *testing.T) {
	t.Parallel()
	client, err := oneConnection("redis://user:pass@127.0.0.1:6379/3")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	var o *redis.Options = client.Options()
	if o.PoolSize != 1 || o.MaxActiveConns != 1 || o.Username != "user" || o.DB != 3 {
		t.Errorf("%+v", o)
	}
}
