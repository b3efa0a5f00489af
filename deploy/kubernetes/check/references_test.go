package check

import (
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// installation is one way to run gateways, with what the two kinds have in common.
type installation struct {
	*manifests
	kind     string
	meta     metav1.ObjectMeta
	replicas *int32
	selector *metav1.LabelSelector
	template corev1.PodTemplateSpec
	volumes  []string
}

// installations reads both. Each test runs on both.
func installations(t *testing.T, test func(*testing.T, *installation)) {
	t.Run("deployment", func(t *testing.T) {
		m, err := read("common", "deployment")
		if err != nil {
			t.Fatal(err)
		}
		if m.deployment == nil || m.stateful != nil {
			t.Fatal("want a Deployment, and no StatefulSet")
		}
		d := m.deployment
		test(t, &installation{m, "Deployment", d.ObjectMeta, d.Spec.Replicas, d.Spec.Selector, d.Spec.Template, nil})
	})
	t.Run("statefulset", func(t *testing.T) {
		m, err := read("common", "statefulset")
		if err != nil {
			t.Fatal(err)
		}
		if m.stateful == nil || m.deployment != nil {
			t.Fatal("want a StatefulSet, and no Deployment")
		}
		s := m.stateful
		var volumes []string
		for _, claim := range s.Spec.VolumeClaimTemplates {
			volumes = append(volumes, claim.Name)
		}
		if s.Spec.ServiceName != m.service.Name {
			t.Errorf("serviceName %q, the Service is %q", s.Spec.ServiceName, m.service.Name)
		}
		test(t, &installation{m, "StatefulSet", s.ObjectMeta, s.Spec.Replicas, s.Spec.Selector, s.Spec.Template, volumes})
	})
}

func TestAllIsThere(t *testing.T) {
	installations(t, func(t *testing.T, i *installation) {
		all := reflect.ValueOf(*i.manifests)
		for n := range all.NumField() {
			name := all.Type().Field(n).Name
			if name != "deployment" && name != "stateful" && all.Field(n).IsNil() {
				t.Errorf("there is no %s", name)
			}
		}
	})
}

func TestSelectorsMeetThePods(t *testing.T) {
	installations(t, func(t *testing.T, i *installation) {
		selectors := map[string]*metav1.LabelSelector{
			i.kind:                i.selector,
			"PodDisruptionBudget": i.disruption.Spec.Selector,
			"NetworkPolicy":       &i.network.Spec.PodSelector,
			"Service":             {MatchLabels: i.service.Spec.Selector},
		}
		for _, spread := range i.template.Spec.TopologySpreadConstraints {
			selectors["spread over "+spread.TopologyKey] = spread.LabelSelector
		}
		for name, s := range selectors {
			selector, err := metav1.LabelSelectorAsSelector(s)
			if err != nil || selector.Empty() || !selector.Matches(labels.Set(i.template.Labels)) {
				t.Errorf("%s selects %v (error %v), the pods are labelled %v", name, selector, err, i.template.Labels)
			}
		}
		peers := i.network.Spec.Ingress[len(i.network.Spec.Ingress)-1]
		from, err := metav1.LabelSelectorAsSelector(peers.From[0].PodSelector)
		if err != nil || from.Empty() || !from.Matches(labels.Set(i.template.Labels)) || peers.Ports[0].Port.String() != "peers" {
			t.Errorf("the last rule of the NetworkPolicy does not let gateways reach the peers of each other: %v", peers)
		}
	})
}

func TestNames(t *testing.T) {
	installations(t, func(t *testing.T, i *installation) {
		pod, container := i.template.Spec, i.template.Spec.Containers[0]
		target := i.autoscaler.Spec.ScaleTargetRef
		if target.APIVersion != "apps/v1" || target.Kind != i.kind || target.Name != i.meta.Name {
			t.Errorf("the autoscaler is for %v, which is not %s %s", target, i.kind, i.meta.Name)
		}
		if i.replicas != nil {
			t.Errorf("%d replicas are set, and applied again against the autoscaler's number", *i.replicas)
		}
		if pod.ServiceAccountName != i.account.Name {
			t.Errorf("service account %q, there is %q", pod.ServiceAccountName, i.account.Name)
		}
		if from := container.EnvFrom[0].ConfigMapRef; from == nil || from.Name != i.config.Name {
			t.Errorf("environment from %v, there is %q", container.EnvFrom, i.config.Name)
		}
		for _, volume := range pod.Volumes {
			i.volumes = append(i.volumes, volume.Name)
		}
		var mounted []string
		for _, mount := range container.VolumeMounts {
			mounted = append(mounted, mount.Name)
			if !slices.Contains(container.Args, "--data="+mount.MountPath) {
				t.Errorf("%s is not where --data is: %v", mount.MountPath, container.Args)
			}
		}
		if !slices.Equal(mounted, i.volumes) {
			t.Errorf("volumes %v, mounted %v", i.volumes, mounted)
		}
		// $(NAME) in an argument is left as it is when there is no such variable.
		for _, arg := range container.Args {
			for _, found := range regexp.MustCompile(`\$\(([^)]*)\)`).FindAllStringSubmatch(arg, -1) {
				if !slices.ContainsFunc(container.Env, func(e corev1.EnvVar) bool { return e.Name == found[1] }) {
					t.Errorf("argument %s names a variable that is not there", arg)
				}
			}
		}
	})
}

func TestPorts(t *testing.T) {
	installations(t, func(t *testing.T, i *installation) {
		container := i.template.Spec.Containers[0]
		ports := make(map[string]int32)
		for _, port := range container.Ports {
			ports[port.Name] = port.ContainerPort
			for _, problem := range validation.IsValidPortName(port.Name) {
				t.Errorf("port %s: %s", port.Name, problem)
			}
		}
		if want := map[string]int32{"api": 7480, "peers": 7481}; !maps.Equal(ports, want) {
			t.Errorf("ports %v, want %v", ports, want)
		}
		named := map[string]intstr.IntOrString{
			"startup": container.StartupProbe.HTTPGet.Port, "liveness": container.LivenessProbe.HTTPGet.Port,
			"readiness": container.ReadinessProbe.HTTPGet.Port,
		}
		for _, port := range i.service.Spec.Ports {
			named["service "+port.Name] = port.TargetPort
		}
		for _, rule := range i.network.Spec.Ingress {
			for _, port := range rule.Ports {
				named["policy "+port.Port.String()] = *port.Port
			}
		}
		for what, port := range named {
			if port.Type != intstr.String || ports[port.StrVal] == 0 {
				t.Errorf("%s uses port %s, the container has %v", what, port.String(), ports)
			}
		}
		if got := i.template.Annotations["prometheus.io/port"]; got != "7480" {
			t.Errorf("metrics are looked for at port %s", got)
		}
	})
}

func TestProbesAndLimits(t *testing.T) {
	installations(t, func(t *testing.T, i *installation) {
		pod, container := i.template.Spec, i.template.Spec.Containers[0]
		startup, live, ready := container.StartupProbe, container.LivenessProbe, container.ReadinessProbe
		if startup.HTTPGet.Path != "/livez" || live.HTTPGet.Path != "/livez" || ready.HTTPGet.Path != "/readyz" {
			t.Errorf("probes ask %s, %s and %s", startup.HTTPGet.Path, live.HTTPGet.Path, ready.HTTPGet.Path)
		}
		// Trying the table and the bucket may take 20 s each, and then the gateway starts.
		if patience := time.Duration(startup.PeriodSeconds*startup.FailureThreshold) * time.Second; patience < time.Minute {
			t.Errorf("the startup probe gives up after %s", patience)
		}
		if grace := *pod.TerminationGracePeriodSeconds; grace <= container.Lifecycle.PreStop.Sleep.Seconds+25+5 {
			t.Errorf("grace period of %d s is shorter than preStop, drain and shutdown", grace)
		}
		limit := container.Resources.Limits.Memory()
		goLimit, err := resource.ParseQuantity(strings.TrimSuffix(variable(t, container, "GOMEMLIMIT"), "B"))
		if err != nil || goLimit.AsApproximateFloat64() > 0.9*limit.AsApproximateFloat64() || goLimit.Value() < 448<<20 {
			t.Errorf("GOMEMLIMIT %s (error %v) beside a limit of %s", goLimit.String(), err, limit)
		}
		if !limit.Equal(*container.Resources.Requests.Memory()) {
			t.Errorf("memory: requested %s, limit %s", container.Resources.Requests.Memory(), limit)
		}
		if container.Resources.Requests.Cpu().IsZero() {
			t.Error("no CPU is requested, and the autoscaler goes by a part of that")
		}
	})
}

func variable(t *testing.T, c corev1.Container, name string) string {
	for _, e := range c.Env {
		if e.Name == name {
			return e.Value
		}
	}
	t.Fatalf("no variable %s", name)
	return ""
}

func TestSecurity(t *testing.T) {
	installations(t, func(t *testing.T, i *installation) {
		pod, container := i.template.Spec.SecurityContext, i.template.Spec.Containers[0].SecurityContext
		switch {
		case !*pod.RunAsNonRoot, *pod.RunAsUser != 65532, *pod.FSGroup != 65532, pod.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault:
			t.Errorf("pod: %v", pod)
		case *container.AllowPrivilegeEscalation, !*container.ReadOnlyRootFilesystem, !slices.Equal(container.Capabilities.Drop, []corev1.Capability{"ALL"}):
			t.Errorf("container: %v", container)
		case *i.account.AutomountServiceAccountToken:
			t.Error("gateways get a token for Kubernetes, which they do not need")
		}
		if !strings.HasPrefix(i.account.Annotations["eks.amazonaws.com/role-arn"], "arn:aws:iam::") {
			t.Errorf("the account names no role: %v", i.account.Annotations)
		}
	})
}

// Both ways run the same container.
func TestPodsAreTheSame(t *testing.T) {
	var containers []corev1.Container
	installations(t, func(_ *testing.T, i *installation) { containers = append(containers, i.template.Spec.Containers...) })
	if len(containers) != 2 || !reflect.DeepEqual(containers[0], containers[1]) {
		t.Errorf("the containers differ:\n%v", containers)
	}
}
