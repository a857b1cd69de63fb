package fault

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestEveryStepIsTaken: a step that no program comes to would be a kill that
// never happens, and one that is in no list is never chosen.
func TestEveryStepIsTaken(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "fault.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	for _, dir := range []string{"../../channel", "../../sdk", "../../sdk/chain", "../../sdk/settle", "../../sdk/wallet", "../../sdk/renter", "../../sdk/x402/x402client"} {
		paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			raw, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			source.Write(raw)
		}
	}
	listed := append(Provider(), append(Renter(false), Renter(true)...)...)
	listed = append(listed, MeterBound) // of a gateway over nodes: a test of its own kills it there
	found := 0
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		name, value := spec.Names[0].Name, strings.Trim(spec.Values[0].(*ast.BasicLit).Value, `"`)
		if name == "Env" {
			return true
		}
		found++
		if !strings.Contains(source.String(), "fault."+name+")") {
			t.Errorf("no program comes to %s", name)
		}
		if !slices.ContainsFunc(listed, func(s Step) bool { return string(s) == value || strings.HasSuffix(string(s), ": "+value) }) {
			t.Errorf("%s is never chosen", name)
		}
		return true
	})
	if found < 30 {
		t.Errorf("%d steps were looked at", found)
	}
}
