package localhost

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

// The least rate at which Kestrel takes a body, as documented for MinRequestBodyDataRate: what has come after the grace
// must be this many bytes for each second since the body began.
const (
	bodyGrace = 5 * time.Second
	bodyRate  = 240 // bytes a second
)

// steadyBody is the body of a client's request, read no slower than Kestrel reads one.
type steadyBody struct {
	io.ReadCloser
	conn   *http.ResponseController
	began  time.Time
	read   int64
	status atomic.Int32 // of the answer to a body that cannot be read; the transport reads, the proxy answers
}

func (b *steadyBody) Read(p []byte) (int, error) {
	_ = b.conn.SetReadDeadline(b.began.Add(max(bodyGrace, time.Duration(b.read)*time.Second/bodyRate)))
	n, err := b.ReadCloser.Read(p)
	b.read += int64(n)
	switch {
	case err == nil:
	case errors.Is(err, io.EOF):
		_ = b.conn.SetReadDeadline(time.Time{}) // the server goes on reading, to notice a client that goes
	case errors.Is(err, os.ErrDeadlineExceeded):
		b.status.Store(http.StatusRequestTimeout)
	default:
		b.status.Store(http.StatusBadRequest)
	}
	return n, err
}

// fault returns the status of the answer to a body that came too slowly or cannot be read, and 0 for any other.
func (b *steadyBody) fault() int {
	if b == nil {
		return 0
	}
	return int(b.status.Load())
}
