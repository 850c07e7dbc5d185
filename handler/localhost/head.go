package localhost

import (
	"bytes"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
)

// This file is how the web server of the Functions host, Kestrel, takes the head of a request, where Go's differs.

// Kestrel's limits of a request's head, in bytes and in lines; the Functions host leaves them as they are.
const (
	maxRequestLine = 8 << 10
	maxHeaderBytes = 32 << 10
	maxHeaderLines = 100
)

// withinLimits answers requests whose head Kestrel refuses, without a body.
func withinLimits(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := 0
		switch bytes, lines := headerSize(r); {
		case len(r.Method)+len(r.RequestURI)+len(r.Proto)+len("  \r\n") > maxRequestLine:
			status = http.StatusRequestURITooLong
		case bytes > maxHeaderBytes, lines > maxHeaderLines:
			status = http.StatusRequestHeaderFieldsTooLarge
		case strings.ContainsFunc(r.RequestURI, func(c rune) bool { return c >= 0x80 }):
			status = http.StatusBadRequest
		default:
			next.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Connection", "close")
		w.WriteHeader(status)
	})
}

// headerSize returns the size of the header lines and how many there are. Go takes the host out of the header.
func headerSize(r *http.Request) (bytes, lines int) {
	add := func(name, value string) {
		bytes += len(name) + len(value) + len(": \r\n")
		lines++
	}
	if r.Host != "" {
		add("Host", r.Host)
	}
	for name, values := range r.Header {
		for _, value := range values {
			add(name, value)
		}
	}
	return bytes, lines
}

// lenientListener makes its connections take percent signs in a path that begin no escape. Go refuses the request
// before a handler sees it; the Functions host passes the sign on.
type lenientListener struct{ net.Listener }

func (l lenientListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &lenientConn{Conn: conn}, nil
}

// lenientConn escapes such percent signs in the first line of each request. A request that a client sends before it has
// the answer to the one before goes through as it is.
type lenientConn struct {
	net.Conn
	expects atomic.Bool // a request line comes next
	line    []byte      // read, escaped and not handed out
}

// beginRequest is the server's ConnState: a new or idle connection gets a request line next.
func beginRequest(conn net.Conn, state http.ConnState) {
	if c, ok := conn.(*lenientConn); ok {
		c.expects.Store(state == http.StateNew || state == http.StateIdle)
	}
}

func (c *lenientConn) Read(p []byte) (int, error) {
	if len(c.line) == 0 {
		if !c.expects.Load() {
			return c.Conn.Read(p)
		}
		if err := c.readLine(); err != nil {
			return 0, err
		}
	}
	n := copy(p, c.line)
	c.line = c.line[n:]
	return n, nil
}

// readLine reads up to the end of the request line, or more than one may have. What came before an error is handed out;
// the next read meets the error.
func (c *lenientConn) readLine() error {
	part := make([]byte, 4<<10)
	var read []byte
	for {
		n, err := c.Conn.Read(part)
		read = append(read, part[:n]...)
		end := bytes.IndexByte(read, '\n')
		if end < 0 && err == nil && len(read) <= maxRequestLine {
			continue
		}
		if len(read) == 0 {
			return err
		}
		c.expects.Store(false)
		c.line = append(escapePercent(read[:max(end, 0)]), read[max(end, 0):]...)
		return nil
	}
}

// escapePercent escapes each percent sign in the path of a request line that begins no escape.
func escapePercent(line []byte) []byte {
	if !bytes.Contains(line, []byte(" HTTP/1.")) {
		return line // the rest of a head that the server had read before
	}
	path, query, found := bytes.Cut(line, []byte("?"))
	var escaped []byte
	for i, c := range path {
		if escaped = append(escaped, c); c == '%' && !isEscape(string(path[i:min(i+3, len(path))])) {
			escaped = append(escaped, "25"...)
		}
	}
	if found {
		escaped = append(append(escaped, '?'), query...)
	}
	return escaped
}
