// Package readme compiles the programs that stand in the README, as they stand
// there.
package readme

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestProgramsInTheReadmeCompile(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	programs := strings.Split(string(text), "```go\n")[1:]
	if len(programs) != 2 {
		t.Fatalf("%d programs, want the provider's and the renter's", len(programs))
	}
	// The programs exist for the compiler only: an overlay puts them into the module.
	overlay := map[string]map[string]string{"Replace": {}}
	var packages []string
	for i, program := range programs {
		program, _, _ = strings.Cut(program, "```")
		file := filepath.Join(t.TempDir(), "main.go")
		if err := os.WriteFile(file, []byte(program), 0o600); err != nil {
			t.Fatal(err)
		}
		dir := fmt.Sprintf("internal/readme/program%d", i)
		overlay["Replace"][filepath.Join(root, dir, "main.go")] = file
		packages = append(packages, "./"+dir)
	}
	raw, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", append([]string{"build", "-overlay", file, "-o", t.TempDir()}, packages...)...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
