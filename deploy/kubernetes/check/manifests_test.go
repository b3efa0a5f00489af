package check

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// manifests are what one installation applies: deploy/kubernetes/common and one of the
// folders with gateways.
type manifests struct {
	config     *corev1.ConfigMap
	account    *corev1.ServiceAccount
	service    *corev1.Service
	network    *networkingv1.NetworkPolicy
	disruption *policyv1.PodDisruptionBudget
	autoscaler *autoscalingv2.HorizontalPodAutoscaler
	deployment *appsv1.Deployment
	stateful   *appsv1.StatefulSet
}

// read decodes every document of the folders, each kind once.
func read(folders ...string) (*manifests, error) {
	m := &manifests{}
	for _, folder := range folders {
		files, err := filepath.Glob(filepath.Join("..", folder, "*"))
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("%s is empty", folder)
		}
		for _, file := range files {
			if err := m.readFile(file); err != nil {
				return nil, fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return m, nil
}

func (m *manifests) readFile(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	documents := utilyaml.NewDocumentDecoder(io.NopCloser(bytes.NewReader(text)))
	defer documents.Close()
	for buffer := make([]byte, 1<<20); ; {
		n, err := documents.Read(buffer)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := m.decode(buffer[:n]); err != nil {
			return err
		}
	}
}

// decode refuses kinds that it does not know, fields that the kind does not have, and
// fields that are given twice.
func (m *manifests) decode(document []byte) error {
	var kind v1.TypeMeta
	if err := yaml.Unmarshal(document, &kind); err != nil {
		return err
	}
	switch name := kind.APIVersion + " " + kind.Kind; name {
	case "v1 ConfigMap":
		return into(&m.config, document)
	case "v1 ServiceAccount":
		return into(&m.account, document)
	case "v1 Service":
		return into(&m.service, document)
	case "networking.k8s.io/v1 NetworkPolicy":
		return into(&m.network, document)
	case "policy/v1 PodDisruptionBudget":
		return into(&m.disruption, document)
	case "autoscaling/v2 HorizontalPodAutoscaler":
		return into(&m.autoscaler, document)
	case "apps/v1 Deployment":
		return into(&m.deployment, document)
	case "apps/v1 StatefulSet":
		return into(&m.stateful, document)
	default:
		return fmt.Errorf("unexpected %q", name)
	}
}

func into[T any](target **T, document []byte) error {
	if *target != nil {
		return fmt.Errorf("a second %T", **target)
	}
	*target = new(T)
	document, err := yaml.YAMLToJSONStrict(document) // no field twice
	if err != nil {
		return err
	}
	// As the API server reads it: encoding/json would take a field in another case for known.
	unknown, err := json.UnmarshalStrict(document, *target)
	return errors.Join(append(unknown, err)...)
}

func TestDecodeIsStrict(t *testing.T) {
	const good = "apiVersion: policy/v1\nkind: PodDisruptionBudget\nspec:\n  maxUnavailable: 1\n"
	if err := new(manifests).decode([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"wrong case":      "apiVersion: policy/v1\nkind: PodDisruptionBudget\nspec:\n  maxunavailable: 1\n",
		"unknown field":   good + "  maxUnavailible: 1\n",
		"field twice":     good + "  maxUnavailable: 2\n",
		"wrong type":      "apiVersion: policy/v1\nkind: PodDisruptionBudget\nspec: 1\n",
		"unknown version": "apiVersion: policy/v1beta1\nkind: PodDisruptionBudget\n",
	} {
		if err := new(manifests).decode([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	m := &manifests{}
	if err := errors.Join(m.decode([]byte(good)), m.decode([]byte(good))); err == nil {
		t.Error("a document twice: accepted")
	}
}
