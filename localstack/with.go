package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/varvelog/varve/localstack/servers"
)

// stopPatience is how long a command may take to end once it was interrupted.
const stopPatience = time.Minute

// with runs a command of varve's with fresh servers on free ports, which end with it. It is given --segments,
// --metadata and the credentials.
func with(ctx context.Context, command []string, out, notes io.Writer) (err error) {
	folder, err := os.MkdirTemp("", "varve-localstack-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	var urls []string
	for _, kind := range kinds {
		p, startErr := kind.Start(ctx, servers.Options{Data: filepath.Join(folder, kind.Name), Log: filepath.Join(folder, kind.Name+".log"), Notes: notes})
		if startErr != nil {
			return startErr
		}
		defer func() { err = errors.Join(err, p.Stop(context.WithoutCancel(ctx))) }()
		urls = append(urls, p.URL())
	}
	if err := errors.Join(makeBucket(ctx, urls[0]), makeTable(ctx, urls[1])); err != nil {
		return err
	}
	place := func(at string) string { return "?region=" + region + "&endpoint=" + url.QueryEscape(at) }
	args := append(command[1:len(command):len(command)], "--segments", "s3://"+bucket+"/with"+place(urls[0]), "--metadata", "dynamodb://"+table+place(urls[1]))
	cmd := exec.CommandContext(ctx, command[0], args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopPatience
	cmd.Env = append(os.Environ(), "AWS_ACCESS_KEY_ID="+servers.AccessKey, "AWS_SECRET_ACCESS_KEY="+servers.SecretKey, "AWS_EC2_METADATA_DISABLED=true")
	cmd.Stdout, cmd.Stderr = out, notes
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", command[0], err)
	}
	return nil
}
