package iam

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

type policy struct {
	Version   string
	Statement []statement
}

type statement struct {
	Sid, Effect string
	Principal   map[string]string
	Action      list
	Resource    list
	Condition   map[string]map[string]list
}

// list is one text or several.
type list []string

func (l *list) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*l = list{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(l))
}

func read(t *testing.T, name string) policy {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var p policy
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&p); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	if p.Version != "2012-10-17" || len(p.Statement) == 0 {
		t.Errorf("%s: version %q, %d statements", name, p.Version, len(p.Statement))
	}
	for _, s := range p.Statement {
		if s.Effect != "Allow" || s.Sid == "" || len(s.Action) == 0 {
			t.Errorf("%s: statement %+v", name, s)
		}
		for _, text := range append(slices.Clone(s.Action), s.Resource...) {
			if text == "*" || strings.HasSuffix(text, ":*") {
				t.Errorf("%s, %s: %q is not the least", name, s.Sid, text)
			}
		}
	}
	return p
}

func actions(p policy) []string {
	all := make(map[string]bool)
	for _, s := range p.Statement {
		for _, action := range s.Action {
			all[action] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// actionsOf are the actions that an operation of the SDK needs.
var actionsOf = map[string]string{
	"s3.GetObject":           "s3:GetObject",
	"s3.HeadObject":          "s3:GetObject",
	"s3.PutObject":           "s3:PutObject", // with If-None-Match too
	"s3.DeleteObject":        "s3:DeleteObject",
	"s3.ListObjectsV2":       "s3:ListBucket",
	"dynamodb.GetItem":       "dynamodb:GetItem",
	"dynamodb.PutItem":       "dynamodb:PutItem",
	"dynamodb.DeleteItem":    "dynamodb:DeleteItem",
	"dynamodb.Query":         "dynamodb:Query",
	"dynamodb.CreateTable":   "dynamodb:CreateTable",
	"dynamodb.DescribeTable": "dynamodb:DescribeTable",
}

// TestActions compares the policies with what the backends' code asks for.
func TestActions(t *testing.T) {
	store := operations(t, "../../segments/s3store", "s3")
	table := operations(t, "../../metadata/dynamotable", "dynamodb")
	setup := make(map[string]bool)
	for operation, functions := range table {
		// Tables are made by whoever sets up, never by a gateway.
		if slices.Equal(functions, []string{"CreateTable"}) {
			setup[operation] = true
			delete(table, operation)
		}
	}
	check := func(name string, operations []string, more ...string) {
		want := more
		for _, operation := range operations {
			action, known := actionsOf[operation]
			if !known {
				t.Errorf("the code uses %s: say which action that needs", operation)
			}
			want = append(want, action)
		}
		slices.Sort(want)
		if diff := cmp.Diff(slices.Compact(want), actions(read(t, name))); diff != "" {
			t.Errorf("%s (-code +policy):\n%s", name, diff)
		}
	}
	check("s3.json", slices.Collect(maps.Keys(store)))
	check("dynamodb.json", slices.Collect(maps.Keys(table)))
	check("setup.json", slices.Collect(maps.Keys(setup)), "s3:CreateBucket")
}

// operations finds the operations of a service that a package uses, and the functions that use
// them: each takes an input that is named after it.
func operations(t *testing.T, folder, service string) map[string][]string {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	found := make(map[string][]string)
	for _, entry := range entries {
		if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), folder+"/"+entry.Name(), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, declaration := range file.Decls {
			within := "a declaration"
			if f, ok := declaration.(*ast.FuncDecl); ok {
				within = f.Name.Name
			}
			ast.Inspect(declaration, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				name, input := strings.CutSuffix(s.Sel.Name, "Input")
				if x, ok := s.X.(*ast.Ident); ok && input && x.Name == service {
					operation := service + "." + name
					if !slices.Contains(found[operation], within) {
						found[operation] = append(found[operation], within)
					}
				}
				return true
			})
		}
	}
	if len(found) < 4 {
		t.Fatalf("in %s only %v was found: is it imported under another name?", folder, found)
	}
	return found
}

func TestTrust(t *testing.T) {
	p := read(t, "trust-eks.json")
	if len(p.Statement) != 1 {
		t.Fatalf("%d statements", len(p.Statement))
	}
	s := p.Statement[0]
	provider, ok := strings.CutPrefix(s.Principal["Federated"], "arn:aws:iam::ACCOUNT:oidc-provider/")
	if !ok || !slices.Equal(s.Action, list{"sts:AssumeRoleWithWebIdentity"}) {
		t.Errorf("%+v", s)
	}
	// Without both, every account of the cluster could take the role.
	want := map[string]map[string]list{"StringEquals": {
		provider + ":aud": {"sts.amazonaws.com"},
		provider + ":sub": {"system:serviceaccount:NAMESPACE:varve"},
	}}
	if diff := cmp.Diff(want, s.Condition); diff != "" {
		t.Errorf("conditions (-want +got):\n%s", diff)
	}
}
