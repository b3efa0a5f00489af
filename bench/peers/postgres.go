package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

type postgresServer struct {
	*process
	program string
	pool    *pgxpool.Pool
}

// postgresProgram finds a program where Debian has it.
func postgresProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return filepath.EvalSymlinks(path)
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/" + name)
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("%w: Debian has it in postgresql", errAbsent)
	}
	return found[len(found)-1], nil
}

func startPostgres(ctx context.Context, dir string, o *options) (_ server, err error) {
	initdb, err := postgresProgram("initdb")
	if err != nil {
		return nil, err
	}
	program, err := postgresProgram("postgres")
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Mkdir(data, 0o700); err != nil {
		return nil, err
	}
	init := exec.Command(initdb, "--pgdata", data, "--username", "peers", "--auth", "trust", "--no-sync")
	if err := unprivileged(init, "postgres", data); err != nil {
		return nil, err
	}
	if out, err := init.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	address, err := freeAddress()
	if err != nil {
		return nil, err
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program, "-D", data, "-h", host, "-p", port, "-k", "", "-c", "synchronous_commit=on", "-c", "fsync=on")
	if err := unprivileged(cmd, "postgres", data); err != nil {
		return nil, err
	}
	p, err := startProcess(cmd)
	if err != nil {
		return nil, err
	}
	p.end = syscall.SIGINT // SIGTERM waits for clients to leave
	s := &postgresServer{process: p, program: program}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.pool, err = pgxpool.New(ctx, fmt.Sprintf("postgres://peers@%s/postgres?sslmode=disable&pool_max_conns=%d", address, o.workers)); err != nil {
		return nil, err
	}
	if err := p.ready(ctx, func() error { return s.pool.Ping(ctx) }); err != nil {
		return nil, err
	}
	for log := range o.logs {
		if _, err := s.pool.Exec(ctx, fmt.Sprintf("CREATE TABLE log_%d (id bigserial PRIMARY KEY, value bytea NOT NULL)", log)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *postgresServer) version() string { return firstLine(s.program, "--version") }

func (s *postgresServer) produce(ctx context.Context, log int, records [][]byte) error {
	_, err := s.pool.CopyFrom(ctx, pgx.Identifier{fmt.Sprintf("log_%d", log)}, []string{"value"},
		pgx.CopyFromSlice(len(records), func(i int) ([]any, error) { return []any{records[i]}, nil }))
	return err
}

// consume reads in the order of ids, a thousand rows a query. (Ids are given before the commit: a reader that follows
// such a table while others write to it can miss some. This one reads when all is written.)
func (s *postgresServer) consume(ctx context.Context, log int, records int64) (bytes int64, err error) {
	after := int64(0)
	query := fmt.Sprintf("SELECT id, value FROM log_%d WHERE id > $1 ORDER BY id LIMIT 1000", log)
	for records > 0 {
		rows, err := s.pool.Query(ctx, query, after)
		if err != nil {
			return bytes, err
		}
		var value []byte
		n := int64(0)
		if _, err := pgx.ForEachRow(rows, []any{&after, &value}, func() error {
			bytes += int64(len(value))
			n++
			return nil
		}); err != nil {
			return bytes, err
		}
		if n == 0 {
			return bytes, fmt.Errorf("the log ended %d records too early", records)
		}
		records -= n
	}
	return bytes, nil
}

func (s *postgresServer) close() error {
	if s.pool != nil {
		s.pool.Close()
	}
	return s.process.close()
}
