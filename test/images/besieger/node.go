package main

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"time"
)

// forkBomb starts processes that do the same, until the kernel refuses. The copies are this
// program: they end with the container, or when their own time is over.
func forkBomb(ctx context.Context, _ options, t *tally) error {
	deadline, _ := ctx.Deadline()
	for ctx.Err() == nil {
		for range 2 {
			child := exec.Command("/proc/self/exe", "attack", "fork-bomb", "-for", time.Until(deadline).String())
			if err := child.Start(); err != nil {
				t.fail(err)
				continue
			}
			t.add("processes")
			go func() { _ = child.Wait() }()
		}
		if !rest(ctx, time.Millisecond) {
			break
		}
	}
	return nil
}

// memoryHog allocates memory and writes to it until it is killed.
func memoryHog(ctx context.Context, _ options, t *tally) error {
	const chunk = 16 << 20
	for ctx.Err() == nil {
		memory, err := syscall.Mmap(-1, 0, chunk, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
		if err != nil {
			t.fail(err)
			break
		}
		for i := 0; i < len(memory); i += os.Getpagesize() {
			memory[i] = 1
		}
		t.addN("MiB", chunk>>20)
	}
	<-ctx.Done()
	return nil
}
