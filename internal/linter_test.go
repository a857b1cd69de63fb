package internal

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the import rule into .golangci.yml")

const rules = "      # generated from internal/layout_test.go: go test ./internal -update\n      rules:\n"

// TestLinterHasTheSameTable: .golangci.yml, which editors read, says of imports what the table says.
func TestLinterHasTheSameTable(t *testing.T) {
	const file = "../.golangci.yml"
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, _, found := bytes.Cut(have, []byte(rules))
	if !found {
		t.Fatalf("%s has no line %q", file, rules)
	}
	want := append(bytes.Clone(before), rules...)
	for _, row := range layout {
		want = append(want, rule(row.pkg, strings.Fields(row.may))...)
	}
	switch {
	case bytes.Equal(have, want):
	case *update:
		err = os.WriteFile(file, want, 0o644)
	default:
		t.Errorf("%s has other rules than the table: go test ./internal -update", file)
	}
	if err != nil {
		t.Error(err)
	}
}

// rule lets a package import the named ones and none else of this module. A dollar sign ends a name: what is below it is not meant.
func rule(pkg string, may []string) string {
	var b strings.Builder
	b.WriteString("        " + strings.ReplaceAll(pkg, "/", "-") + ":\n")
	b.WriteString("          list-mode: lax\n")
	b.WriteString("          files: ['**/" + pkg + "/*.go', '!$test']\n")
	if len(may) > 0 {
		b.WriteString("          allow:\n")
		for _, name := range may {
			b.WriteString("            - " + module + name + "$\n")
		}
	}
	b.WriteString("          deny:\n            - pkg: " + strings.TrimSuffix(module, "/") + "\n              desc: internal/layout_test.go says what " + pkg + " may import\n")
	return b.String()
}
