package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/varvelog/varve/localstack/servers"
)

const usage = `usage: localstack up|down|status|fetch [flags]
       localstack with COMMAND…

  up      start MinIO and dynalite, make the bucket and the table, print how to use them
  down    stop them; the data stays
  status  what runs, and where
  fetch   only get the servers' programs
  with    run a command of varve's, like bin/varve bench all, with servers of its own: it is given --segments
          and --metadata, and they end with it

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "localstack:", err)
		os.Exit(1)
	}
}

// errUsage says that the command line was wrong and that this has been explained.
var errUsage = errors.New("wrong usage")

func run(ctx context.Context, args []string, out, notes io.Writer) error {
	if len(args) > 1 && args[0] == "with" {
		return with(ctx, args[1:], out, notes)
	}
	flags := flag.NewFlagSet("localstack", flag.ContinueOnError)
	flags.SetOutput(notes)
	flags.Usage = func() { fmt.Fprint(notes, usage); flags.PrintDefaults() }
	s3Port := port{9000}
	dynamoPort := port{8000}
	state := flags.String("state", cmp.Or(os.Getenv("VARVE_LOCALSTACK_STATE"), filepath.Join("localstack", ".state")),
		"folder for data, logs and process ids (VARVE_LOCALSTACK_STATE)")
	flags.Var(&s3Port, "s3-port", "`port` of MinIO (VARVE_LOCALSTACK_S3_PORT)")
	flags.Var(&dynamoPort, "dynamodb-port", "`port` of dynalite (VARVE_LOCALSTACK_DYNAMODB_PORT)")
	err := errors.Join(
		s3Port.from("VARVE_LOCALSTACK_S3_PORT"),
		dynamoPort.from("VARVE_LOCALSTACK_DYNAMODB_PORT"))
	if err != nil {
		return err
	}
	verb, err := parse(flags, args)
	if err != nil {
		return err
	}
	if verb == "fetch" {
		return errors.Join(servers.MinIO.Fetch(ctx, notes), servers.Dynalite.Fetch(ctx, notes))
	}
	s, err := openStack(*state, notes)
	if err != nil {
		return err
	}
	defer s.close()
	switch verb {
	case "up":
		return up(ctx, s, s3Port.number, dynamoPort.number, out)
	case "down":
		return s.down(ctx)
	default:
		return s.status(out)
	}
}

// parse takes flags before and after the verb.
func parse(flags *flag.FlagSet, args []string) (verb string, err error) {
	if flags.Parse(args) != nil {
		return "", errUsage
	}
	verb = flags.Arg(0)
	switch verb {
	case "up", "down", "status", "fetch":
	default:
		flags.Usage()
		return "", errUsage
	}
	if flags.Parse(flags.Args()[1:]) != nil {
		return "", errUsage
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(flags.Output(), "%s takes no argument %q\n\n", verb, flags.Arg(0))
		flags.Usage()
		return "", errUsage
	}
	return verb, nil
}

func up(ctx context.Context, s *stack, s3Port, dynamoPort int, out io.Writer) (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, s.undo(context.WithoutCancel(ctx)))
		}
	}()
	minio, err := s.start(ctx, servers.MinIO, s3Port, "--s3-port (VARVE_LOCALSTACK_S3_PORT)")
	if err != nil {
		return err
	}
	dynalite, err := s.start(ctx, servers.Dynalite, dynamoPort, "--dynamodb-port (VARVE_LOCALSTACK_DYNAMODB_PORT)")
	if err != nil {
		return err
	}
	if err := makeBucket(ctx, minio.URL()); err != nil {
		return fmt.Errorf("%w; %s may say more", err, s.path(servers.MinIO, ".log"))
	}
	if err := makeTable(ctx, dynalite.URL()); err != nil {
		return fmt.Errorf("%w; %s may say more", err, s.path(servers.Dynalite, ".log"))
	}
	fmt.Fprintf(s.notes, "bucket %q and table %q are ready; data and logs are in %s\n", bucket, table, s.folder)
	fmt.Fprintf(out, `export AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s
bin/varve serve --data '%s' \
  --segments 's3://%s/dev?endpoint=%s&region=%s' \
  --metadata 'dynamodb://%s?endpoint=%s&region=%s'
`, servers.AccessKey, servers.SecretKey, filepath.Join(s.folder, "gateway"), bucket, minio.URL(), region, table, dynalite.URL(), region)
	fmt.Fprint(s.notes, "make localstack-down stops both; the data stays\n")
	return nil
}

// port is a flag that takes what can be listened on.
type port struct{ number int }

func (p *port) String() string { return strconv.Itoa(p.number) }

func (p *port) Set(text string) error {
	number, err := strconv.ParseUint(text, 10, 16)
	if err != nil || number == 0 {
		return fmt.Errorf("%q is no port: give a number from 1 to 65535", text)
	}
	p.number = int(number)
	return nil
}

// from takes the port from the environment, if it is there.
func (p *port) from(variable string) error {
	text := os.Getenv(variable)
	if text == "" {
		return nil
	}
	if err := p.Set(text); err != nil {
		return fmt.Errorf("%s: %w", variable, err)
	}
	return nil
}
