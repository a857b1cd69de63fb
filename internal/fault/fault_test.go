package fault

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
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
	for _, root := range []string{"../../channel", "../../sdk"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			raw, err := os.ReadFile(path)
			source.Write(raw)
			return err
		})
		if err != nil {
			t.Fatal(err)
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
