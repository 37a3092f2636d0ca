package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"
)

// largePage is the size of the page for a slow reader: more than all buffers between it and the
// hall.
const largePage = 256 << 20

// runHall is the backend of the Ingress. "/" is a small page and /large a large one. POST reads a
// body to its end. /smuggled counts its requests and /count returns that number.
func runHall(ctx context.Context) error {
	var smuggled atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			if _, err := discard(r.Body); err != nil {
				return
			}
		}
		fmt.Fprintln(w, "hall")
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, _ *http.Request) {
		chunk := make([]byte, 64<<10)
		for range largePage / len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	})
	mux.HandleFunc("/smuggled", func(http.ResponseWriter, *http.Request) { smuggled.Add(1) })
	mux.HandleFunc("/count", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, smuggled.Load()) })
	return serve(ctx, ":8080", mux)
}

func serve(ctx context.Context, address string, handler http.Handler) error {
	server := &http.Server{Addr: address, Handler: handler, ReadHeaderTimeout: time.Minute}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
