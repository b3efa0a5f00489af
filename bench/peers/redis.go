package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strconv"
	"sync"
)

type redisServer struct {
	*process
	address string
	program string
	// idle are connections that nobody uses.
	mu   sync.Mutex
	idle []*redisConn
}

func startRedis(ctx context.Context, dir string, _ *options) (server, error) {
	program, err := exec.LookPath("redis-server")
	if err != nil {
		return nil, fmt.Errorf("%w: Debian has it in redis-server", errAbsent)
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	// Snapshots of memory are no part of the work, and neither are rewrites of the file.
	p, err := startProcess(exec.Command(program, "--bind", host, "--port", port, "--dir", dir, "--appendonly", "yes", "--appendfsync", "always", "--save", "",
		"--auto-aof-rewrite-percentage", "0"))
	if err != nil {
		return nil, err
	}
	s := &redisServer{process: p, address: address, program: program}
	return s, p.ready(ctx, func() error {
		c, err := s.dial(ctx)
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.idle = append(s.idle, c)
		}
		return err
	})
}

func (s *redisServer) version() string { return firstLine(s.program, "--version") }

// redisConn speaks as much of Redis's protocol as is needed here.
type redisConn struct {
	net.Conn
	in  *bufio.Reader
	out *bufio.Writer
}

func (s *redisServer) dial(ctx context.Context) (*redisConn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.address)
	if err != nil {
		return nil, err
	}
	return &redisConn{conn, bufio.NewReaderSize(conn, 1<<20), bufio.NewWriterSize(conn, 1<<18)}, nil
}

// with lends a connection.
func (s *redisServer) with(ctx context.Context, use func(*redisConn) error) error {
	s.mu.Lock()
	var c *redisConn
	if n := len(s.idle); n > 0 {
		c, s.idle = s.idle[n-1], s.idle[:n-1]
	}
	s.mu.Unlock()
	if c == nil {
		var err error
		if c, err = s.dial(ctx); err != nil {
			return err
		}
	}
	if err := use(c); err != nil {
		return errors.Join(err, c.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = append(s.idle, c)
	return nil
}

func (c *redisConn) send(args ...[]byte) {
	// Errors of a bufio.Writer stay: Flush returns them.
	fmt.Fprintf(c.out, "*%d\r\n", len(args))
	for _, a := range args {
		fmt.Fprintf(c.out, "$%d\r\n", len(a))
		_, _ = c.out.Write(a)
		_, _ = c.out.WriteString("\r\n")
	}
}

// receive reads one answer: leaves tells of each text in it.
func (c *redisConn) receive(leaf func([]byte)) error {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return err
	}
	kind, rest := line[0], string(line[1:len(line)-2])
	switch kind {
	case '-':
		return errors.New(rest)
	case '+', ':':
		return nil
	}
	n, err := strconv.Atoi(rest)
	if err != nil || n < 0 {
		return err
	}
	if kind == '$' {
		text := make([]byte, n+2)
		if _, err := io.ReadFull(c.in, text); err != nil {
			return err
		}
		leaf(text[:n])
		return nil
	}
	for range n {
		if err := c.receive(leaf); err != nil {
			return err
		}
	}
	return nil
}

func (s *redisServer) produce(ctx context.Context, log int, records [][]byte) error {
	return s.with(ctx, func(c *redisConn) error {
		sent := make(chan error, 1)
		go func() {
			for _, value := range records {
				c.send([]byte("XADD"), []byte(stream(log)), []byte("*"), []byte("v"), value)
			}
			sent <- c.out.Flush()
		}()
		var failed error
		for range records {
			if failed = c.receive(func([]byte) {}); failed != nil {
				break
			}
		}
		return errors.Join(failed, <-sent)
	})
}

func (s *redisServer) consume(ctx context.Context, log int, records int64) (bytes int64, err error) {
	after := "0"
	err = s.with(ctx, func(c *redisConn) error {
		for records > 0 {
			c.send([]byte("XRANGE"), []byte(stream(log)), []byte("("+after), []byte("+"), []byte("COUNT"), []byte("1000"))
			if err := c.out.Flush(); err != nil {
				return err
			}
			var texts int64 // of each record: its id, the name of its field, its value
			if err := c.receive(func(text []byte) {
				switch texts % 3 {
				case 0:
					after = string(text)
				case 2:
					bytes += int64(len(text))
				}
				texts++
			}); err != nil {
				return err
			}
			if texts == 0 {
				return fmt.Errorf("the log ended %d records too early", records)
			}
			records -= texts / 3
		}
		return nil
	})
	return bytes, err
}

func (s *redisServer) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.idle {
		c.Close()
	}
	return s.process.close()
}
