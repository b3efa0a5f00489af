package serverstest

import (
	"net/http"
	"testing"

	"github.com/varvelog/varve/localstack/servers"
)

func TestStart(t *testing.T) {
	for _, kind := range []servers.Kind{servers.MinIO, servers.Dynalite} {
		var url string
		t.Run(kind.Name, func(t *testing.T) {
			url = Start(t, kind)
			response, err := http.Get(url)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
		})
		if _, err := http.Get(url); err == nil {
			t.Errorf("%s still answers after the test", kind.Name)
		}
	}
}
