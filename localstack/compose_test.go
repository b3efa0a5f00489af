package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/varvelog/varve/localstack/servers"
)

// compose.yaml has to agree with what the processes are; an engine to run it is not
// everywhere, so this reads it.
func TestCompose(t *testing.T) {
	text, err := os.ReadFile("compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Services map[string]struct {
			Image string
			Build struct {
				Dockerfile string `yaml:"dockerfile_inline"`
			}
			Ports       []string
			Environment map[string]string
			Command     []string
		}
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	pinned := regexp.MustCompile(`:v?\d+\.\d+\.\d+\S*$`)
	for name, service := range file.Services {
		if !pinned.MatchString(service.Image) {
			t.Errorf("%s: image %q is not pinned", name, service.Image)
		}
		for _, port := range service.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %q is not bound to loopback", name, port)
			}
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
