package readme

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestMapIsTrue: what ARCHITECTURE.md says stands somewhere stands there: each path exists, and a table's line that names a file
// and functions names functions of that file.
func TestMapIsTrue(t *testing.T) {
	text, err := os.ReadFile("../../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	found := 0
	for line := range strings.Lines(string(text)) {
		if !strings.HasPrefix(line, "|") {
			continue
		}
		var source string
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			name := m[1]
			path := filepath.Join("../..", filepath.FromSlash(name))
			switch _, err := os.Stat(path); {
			case err == nil && strings.HasSuffix(name, ".go"):
				read, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				source = string(read)
				found++
			case err == nil, !strings.Contains(name, "/") && source == "":
			case source == "" || strings.Contains(name, "/"):
				if strings.ContainsAny(name, " <") {
					continue // a command, a wish
				}
				t.Errorf("there is no %s", name)
			case !regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + name + `[(\[]`).MatchString(source):
				t.Errorf("%s: there is no %s in that file", strings.TrimSpace(line), name)
			}
		}
	}
	if found < 15 {
		t.Errorf("only %d files are named: has the table changed its form?", found)
	}
	named := regexp.MustCompile(`\b([a-z]+): (\w+)\.(\w+)`).FindAllStringSubmatch(string(text), -1)
	if len(named) < 10 {
		t.Errorf("only %d methods are named in the flows: have they changed their form?", len(named))
	}
	for _, m := range named {
		if !declared(t, m[1], regexp.MustCompile(`(?m)^func \(\w+ \*?`+m[2]+`(\[\w+\])?\) `+m[3]+`[(\[]`)) {
			t.Errorf("package %s has no %s.%s", m[1], m[2], m[3])
		}
	}
}

// declared reports whether a package of a name has a declaration.
func declared(t *testing.T, name string, declaration *regexp.Regexp) (found bool) {
	t.Helper()
	err := filepath.WalkDir("../..", func(path string, d os.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git"):
			return filepath.SkipDir
		case found || d.IsDir() || filepath.Base(filepath.Dir(path)) != name || !strings.HasSuffix(path, ".go"):
			return nil
		}
		text, err := os.ReadFile(path)
		found = found || declaration.Match(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}
