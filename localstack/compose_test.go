package main

import (
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/varvelog/varve/localstack/servers"
)

// composeFile is what the tests need of compose.yaml.
type composeFile struct {
	Services map[string]service
	Volumes  map[string]any
}

type service struct {
	Image string
	Build struct {
		Context    string
		Dockerfile string `yaml:"dockerfile_inline"`
	}
	Ports       []string
	Volumes     []string
	Environment map[string]string
	Command     []string
	DependsOn   map[string]struct{ Condition string } `yaml:"depends_on"`
	Healthcheck *struct{ Test []string }
	ReadOnly    bool          `yaml:"read_only"`
	Grace       time.Duration `yaml:"stop_grace_period"`
}

// gateways are those of the file, in order.
var gateways = []string{"gateway-1", "gateway-2", "gateway-3"}

func readCompose(t *testing.T) composeFile {
	t.Helper()
	text, err := os.ReadFile("compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file composeFile
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

// compose.yaml has to agree with what the processes are; an engine to run it is not
// everywhere, so this reads it.
func TestCompose(t *testing.T) {
	file := readCompose(t)
	want := append([]string{"dynamodb", "init", "minio", "prometheus"}, gateways...)
	slices.Sort(want)
	if names := slices.Sorted(maps.Keys(file.Services)); !slices.Equal(names, want) {
		t.Errorf("services %v, want %v", names, want)
	}
	published := make(map[string]string)
	pinned := regexp.MustCompile(`:v?\d+\.\d+\.\d+\S*$`)
	for name, service := range file.Services {
		if !pinned.MatchString(service.Image) {
			t.Errorf("%s: image %q is not pinned", name, service.Image)
		}
		for _, port := range service.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %q is not bound to loopback", name, port)
			}
			outside := port[:strings.LastIndexByte(port, ':')]
			if other, taken := published[outside]; taken {
				t.Errorf("%s: %s publishes %s too", name, other, outside)
			}
			published[outside] = name
		}
		for other, how := range service.DependsOn {
			known, there := file.Services[other]
			if !there || how.Condition == "service_healthy" && known.Healthcheck == nil {
				t.Errorf("%s waits for %s to be %s, which cannot be", name, other, how.Condition)
			}
		}
		for _, volume := range service.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			if _, declared := file.Volumes[source]; declared {
				continue
			}
			if _, err := os.Stat(source); !strings.HasPrefix(source, ".") || err != nil {
				t.Errorf("%s: volume %s is neither declared nor a folder (%v)", name, volume, err)
			}
		}
		if service.Healthcheck == nil && name != "init" {
			t.Errorf("%s has no health check", name)
		}
	}
	minio, init := file.Services["minio"], file.Services["init"]
	if !strings.Contains(minio.Build.Dockerfile, "minio@"+servers.MinIOVersion+"\n") {
		t.Errorf("MinIO is not built at %s:\n%s", servers.MinIOVersion, minio.Build.Dockerfile)
	}
	if minio.Environment["MINIO_ROOT_USER"] != servers.AccessKey || minio.Environment["MINIO_ROOT_PASSWORD"] != servers.SecretKey {
		t.Errorf("MinIO's credentials differ: %v", minio.Environment)
	}
	if init.Environment["AWS_ACCESS_KEY_ID"] != servers.AccessKey || init.Environment["AWS_SECRET_ACCESS_KEY"] != servers.SecretKey {
		t.Errorf("init's credentials differ: %v", init.Environment)
	}
	script := strings.Join(init.Command, "\n")
	for _, want := range []string{"create-bucket --bucket " + bucket, "create-table --table-name " + table, "AttributeName=p,KeyType=HASH", "AttributeName=s,KeyType=RANGE"} {
		if !strings.Contains(script, want) {
			t.Errorf("init does not %s", want)
		}
	}
}

// The gateways differ in nothing but name, zone, disk and port. (That their variables are those of
// varve serve is tested beside it.)
func TestComposeGateways(t *testing.T) {
	file := readCompose(t)
	disks := make(map[string]bool)
	for _, name := range gateways {
		g := file.Services[name]
		if _, err := os.Stat(path.Join(g.Build.Context, "Dockerfile")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if how := g.DependsOn["init"].Condition; how != "service_completed_successfully" {
			t.Errorf("%s starts when init is %q: bucket and table have to be there", name, how)
		}
		if g.Environment["AWS_ACCESS_KEY_ID"] != servers.AccessKey || g.Environment["AWS_SECRET_ACCESS_KEY"] != servers.SecretKey {
			t.Errorf("%s: credentials differ: %v", name, g.Environment)
		}
		if at := g.Environment["VARVE_ADVERTISE"]; at != name+":7481" || g.Environment["VARVE_PEER_LISTEN"] != "0.0.0.0:7481" {
			t.Errorf("%s tells others that it is at %s", name, at)
		}
		if s := g.Environment["VARVE_SEGMENTS"]; !strings.HasPrefix(s, "s3://"+bucket+"/") || !strings.Contains(s, "endpoint=http://minio:9000&") {
			t.Errorf("%s: segments in %s", name, s)
		}
		if s := g.Environment["VARVE_METADATA"]; !strings.HasPrefix(s, "dynamodb://"+table+"?endpoint=http://dynamodb:8000&") {
			t.Errorf("%s: table in %s", name, s)
		}
		if !g.ReadOnly || g.Grace <= 30*time.Second {
			t.Errorf("%s: read-only %v, %s to stop", name, g.ReadOnly, g.Grace)
		}
		if len(g.Volumes) != 1 || !strings.HasSuffix(g.Volumes[0], ":/var/lib/varve") || disks[g.Volumes[0]] {
			t.Errorf("%s: volumes %v, want one of its own at /var/lib/varve", name, g.Volumes)
		}
		disks[g.Volumes[0]] = true
	}
}

func TestComposePrometheus(t *testing.T) {
	folder, mounted, _ := strings.Cut(readCompose(t).Services["prometheus"].Volumes[0], ":")
	if !strings.HasPrefix(mounted, "/etc/prometheus:") {
		t.Errorf("mounted at %s", mounted)
	}
	text, err := os.ReadFile(path.Join(folder, "prometheus.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		RuleFiles []string `yaml:"rule_files"`
		Scrape    []struct {
			Static []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	for _, file := range config.RuleFiles {
		if _, err := os.Stat(path.Join(folder, file)); err != nil {
			t.Error(err)
		}
	}
	var want []string
	for _, name := range gateways {
		want = append(want, name+":7480")
	}
	if got := config.Scrape[0].Static[0].Targets; !slices.Equal(got, want) {
		t.Errorf("scrapes %v, want %v", got, want)
	}
}
