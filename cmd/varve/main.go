// Command varve is a log on object storage: the server, and what people do with it by hand.
//
//	main ─> execute ─> root command ─> a verb ─┬─> package client ─> a running gateway
//	                                           └─> package segments, for dump of a file
//
// Data goes to standard output; summaries, notes, progress and errors go to standard error. The exit
// status is 0 when all that was asked was done, 1 when something failed, 2 for wrong usage.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// errInterrupted is why a command's context ends when somebody pressed Ctrl-C or sent SIGTERM.
var errInterrupted = errors.New("interrupted")

func main() {
	// Without this the runtime ends the process at the first write to a pipe that nobody reads; with it
	// the write fails, and the verb decides what that means.
	signal.Ignore(syscall.SIGPIPE)
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		watchSignals(signals, time.Now, cancel)
		fmt.Fprintln(os.Stderr, "varve: stopped at once, by a second signal")
		os.Exit(statusFailed)
	}()
	os.Exit(execute(ctx, os.Args[1:], &app{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, lookupEnv: os.LookupEnv, now: time.Now,
	}))
}

// signalEcho is how soon after the first signal another one is taken for the same: who stops a process and its
// group sends two at once.
const signalEcho = 500 * time.Millisecond

// watchSignals lets the first signal end the command cleanly, and returns with the one that is to end it at once.
func watchSignals(signals <-chan os.Signal, now func() time.Time, cancel context.CancelCauseFunc) {
	<-signals
	first := now()
	cancel(errInterrupted)
	for range signals {
		if now().Sub(first) >= signalEcho {
			return
		}
	}
}
