package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// checkout is where the files are that run this program elsewhere: Dockerfile, deploy, localstack.
const checkout = "../.."

// variables are a container's, by name.
type variables map[string]string

// planned is what a command line in a container comes to. Every variable VARVE_… has to be that
// of a flag.
func planned(args []string, env variables) (*plan, *serveOptions, error) {
	if len(args) == 0 || args[0] != "serve" {
		return nil, nil, fmt.Errorf("%q does not serve", args)
	}
	o := &serveOptions{}
	flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
	o.register(flags)
	if err := flags.Parse(args[1:]); err != nil {
		return nil, nil, err
	}
	known := make(variables)
	flags.VisitAll(func(f *pflag.Flag) { known[variableOf(f)] = f.Name })
	var faults []error
	for name, value := range env {
		flag, ok := known[name]
		switch {
		case !strings.HasPrefix(name, "VARVE_"):
		case !ok:
			faults = append(faults, fmt.Errorf("%s is the variable of no flag of varve serve", name))
		case value != "" && !flags.Changed(flag):
			faults = append(faults, flags.Set(flag, value))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, nil, err
	}
	p, err := o.plan(io.Discard)
	return p, o, err
}

// stopTime is what a clean shutdown with these flags takes at most.
func stopTime(o *serveOptions) time.Duration { return o.drainTimeout + shutdownTime }

// image is what the last stage of the Dockerfile says.
type image struct {
	copied, expose       []string
	entrypoint, command  []string
	user, volume, folder string
	stopWith             string
	env                  variables
}

func readImage(t *testing.T) image {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(checkout, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	joined := strings.ReplaceAll(string(text), "\\\n", " ")
	stages := regexp.MustCompile(`(?m)^FROM `).Split(joined, -1)
	last := stages[len(stages)-1]
	if !strings.HasPrefix(last, "scratch\n") {
		t.Errorf("the image is not FROM scratch: %.30q", last)
	}
	i := image{env: make(variables)}
	for line := range strings.Lines(last) {
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch rest := words[1:]; words[0] {
		case "COPY":
			i.copied = append(i.copied, rest[len(rest)-1])
		case "EXPOSE":
			i.expose = rest
		case "USER":
			i.user = rest[0]
		case "VOLUME":
			i.volume = rest[0]
		case "WORKDIR":
			i.folder = rest[0]
		case "STOPSIGNAL":
			i.stopWith = rest[0]
		case "ENV":
			for _, pair := range rest {
				name, value, _ := strings.Cut(pair, "=")
				i.env[name] = value
			}
		case "ENTRYPOINT", "CMD":
			into := &i.entrypoint
			if words[0] == "CMD" {
				into = &i.command
			}
			if err := json.Unmarshal([]byte(strings.Join(rest, " ")), into); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		}
	}
	return i
}

func TestImage(t *testing.T) {
	i := readImage(t)
	if !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(i.user) {
		t.Errorf("user %q, want numbers that are not root's", i.user)
	}
	if len(i.entrypoint) != 1 || !slices.Contains(i.copied, i.entrypoint[0]) || !slices.Equal(i.command, []string{"serve"}) {
		t.Errorf("it runs %v %v, and holds %v", i.entrypoint, i.command, i.copied)
	}
	if i.volume != i.folder || !slices.Contains(i.copied, i.volume) || i.env["TMPDIR"] != i.volume {
		t.Errorf("volume %s, data below %s, temporary files in %s", i.volume, i.folder, i.env["TMPDIR"])
	}
	if !slices.Equal(i.expose, []string{"7480", "7481"}) || i.stopWith != "SIGTERM" {
		t.Errorf("exposes %v, stops with %s", i.expose, i.stopWith)
	}
	// As it comes it refuses to serve a network that nobody vouched for.
	if _, _, err := planned(i.command, i.env); err == nil || !strings.Contains(err.Error(), "--insecure") {
		t.Errorf("without --insecure: %v", err)
	}
	if _, o, err := planned(append(i.command, "--insecure"), i.env); err != nil || o.listen != "0.0.0.0:7480" || filepath.IsAbs(o.data) {
		t.Errorf("with --insecure: listens on %s, data in %s, error %v", o.listen, o.data, err)
	}
}

// pods is what is read here of a Deployment or StatefulSet. (deploy/kubernetes/check reads all of it.)
type pods struct {
	Spec struct {
		Template struct {
			Spec struct {
				Grace      int `yaml:"terminationGracePeriodSeconds"`
				Containers []struct {
					Args      []string
					Env       []struct{ Name, Value string }
					Lifecycle struct {
						PreStop struct{ Sleep struct{ Seconds int } } `yaml:"preStop"`
					}
				}
			}
		}
	}
}

func readYAML(t *testing.T, name string, into any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(checkout, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil { // of several documents the first
		t.Fatalf("%s: %v", name, err)
	}
}

func TestKubernetesManifests(t *testing.T) {
	var settings struct{ Data variables }
	readYAML(t, "deploy/kubernetes/common/config.yaml", &settings)
	for _, name := range []string{"deployment/deployment.yaml", "statefulset/statefulset.yaml"} {
		var pods pods
		readYAML(t, "deploy/kubernetes/"+name, &pods)
		pod := pods.Spec.Template.Spec
		container := pod.Containers[0]
		env := readImage(t).env
		for name, value := range settings.Data {
			env[name] = value
		}
		for _, e := range container.Env {
			env[e.Name] = e.Value
		}
		args := slices.Clone(container.Args)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "$(POD_IP)", "10.1.2.3")
		}
		p, o, err := planned(args, env)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.exclusive() || o.advertise != "10.1.2.3:7481" || o.peerListen != "0.0.0.0:7481" || o.listen != "0.0.0.0:7480" {
			t.Errorf("%s: table %+v, listens on %s and %s, tells others %s", name, p.metadata, o.listen, o.peerListen, o.advertise)
		}
		preStop := time.Duration(container.Lifecycle.PreStop.Sleep.Seconds) * time.Second
		if grace := time.Duration(pod.Grace) * time.Second; grace <= preStop+stopTime(o) {
			t.Errorf("%s: killed after %s, a clean end may take %s", name, grace, preStop+stopTime(o))
		}
	}
}

func TestComposeGateways(t *testing.T) {
	var file struct {
		Services map[string]struct {
			Environment variables
			Grace       time.Duration `yaml:"stop_grace_period"`
			Healthcheck struct{ Test []string }
		}
	}
	readYAML(t, "localstack/compose.yaml", &file)
	for _, name := range []string{"gateway-1", "gateway-2", "gateway-3"} {
		service, image := file.Services[name], readImage(t)
		for variable, value := range service.Environment {
			image.env[variable] = value
		}
		p, o, err := planned(image.command, image.env)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.exclusive() || filepath.IsAbs(o.data) {
			t.Errorf("%s: table %+v, data in %s", name, p.metadata, o.data)
		}
		if service.Grace <= stopTime(o) {
			t.Errorf("%s: killed after %s, a clean end may take %s", name, service.Grace, stopTime(o))
		}
		check := service.Healthcheck.Test
		if len(check) < 3 || check[0] != "CMD" || check[1] != image.entrypoint[0] {
			t.Fatalf("%s is checked with %q, and holds nothing but %s", name, check, image.entrypoint[0])
		}
		gateway := startServing(t, "--data", t.TempDir())
		a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: t.Output(), now: time.Now,
			lookupEnv: func(name string) (string, bool) { return "http://" + gateway.address, name == "VARVE_SERVER" }}
		if status := execute(t.Context(), check[2:], a); status != statusDone {
			t.Errorf("%s: its health check ends with status %d on a healthy gateway", name, status)
		}
		if err := gateway.stop(); err != nil {
			t.Error(err)
		}
	}
}

// TestAlerts compares the names in the alerts with those that a gateway shows.
func TestAlerts(t *testing.T) {
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Labels      struct{ Severity string }
				Annotations struct{ Summary, Description string }
			}
		}
	}
	readYAML(t, "deploy/prometheus/alerts.yaml", &rules)
	answer, err := http.Get("http://" + startServing(t, "--data", t.TempDir()).address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	shown := func(metric, label string) bool {
		for line := range bytes.Lines(page) {
			series, found := strings.CutPrefix(string(line), metric)
			if found && strings.IndexAny(series, "{ ") == 0 && strings.Contains(series, label) {
				return true
			}
		}
		return false
	}
	count := 0
	for _, rule := range rules.Groups[0].Rules {
		if rule.Alert == "" || rule.Labels.Severity == "" || rule.Annotations.Summary == "" || rule.Annotations.Description == "" {
			t.Errorf("incomplete: %+v", rule)
		}
		for _, found := range regexp.MustCompile(`(varve_\w+)(?:\{([^}]*)\})?`).FindAllStringSubmatch(rule.Expr, -1) {
			count++
			if !shown(found[1], found[2]) {
				t.Errorf("%s: no gateway shows %s", rule.Alert, found[0])
			}
		}
	}
	if count < 5 {
		t.Errorf("only %d metrics are named", count)
	}
}
