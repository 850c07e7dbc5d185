package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
)

// sink is a queue that takes every message and forgets it, where the handler looks for its broker.
type sink struct {
	server *http.Server
	url    string
	ended  chan struct{}
}

func startSink() (*sink, error) {
	listen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the queue: %w", err)
	}
	s := &sink{url: "http://" + listen.Addr().String() + "/local/queues", ended: make(chan struct{})}
	s.server = &http.Server{Handler: http.HandlerFunc(accept)}
	go func() {
		defer close(s.ended)
		if err := s.server.Serve(listen); !errors.Is(err, http.ErrServerClosed) {
			panic(err) // a bench without its queue measures nothing
		}
	}()
	return s, nil
}

// accept answers as the embedded broker does.
func accept(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Messages []json.RawMessage `json:"messages"`
	}
	text, err := io.ReadAll(r.Body)
	if err == nil && r.Method == http.MethodPost {
		err = json.Unmarshal(text, &body)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if r.Method == http.MethodPost {
		w.WriteHeader(http.StatusCreated)
	}
	_, _ = fmt.Fprintf(w, `{"accepted":%d}`, len(body.Messages)) // the handler has gone
}

func (s *sink) stop() {
	_ = s.server.Close()
	<-s.ended
}
