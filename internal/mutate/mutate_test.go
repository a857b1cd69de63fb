package main

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestListIsCurrent holds every committed mutant to the tree: its file is well formed, its place is found once, its run
// lines name tests that are there and compile what it changes. Whether the tests find it is for the program to say; that takes hours.
func TestListIsCurrent(t *testing.T) {
	root, err := findRoot()
	if err != nil {
		t.Fatal(err)
	}
	list, err := loadMutants(filepath.Join(root, "internal/mutants"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		changed, err := m.apply(root)
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
		for _, r := range m.runs {
			err := r.exists(root)
			for file := range changed {
				err = errors.Join(err, r.compiles(file))
			}
			if err != nil {
				t.Errorf("%s: %v", m.name, err)
			}
		}
	}
}

// TestModelFindsEachFault: where money moved wrongly, random steps find it again, not only the test that was written for it.
func TestModelFindsEachFault(t *testing.T) {
	root, err := findRoot()
	if err != nil {
		t.Fatal(err)
	}
	list, err := loadMutants(filepath.Join(root, "internal/mutants"))
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range strings.Fields("P1 P2 P3 P4 P5 P6 P7 P8 P9 R2 R3 R4 R5 R6") {
		if !slices.ContainsFunc(list, func(m *mutant) bool {
			return m.row == row && slices.ContainsFunc(m.runs, func(r runLine) bool { return filepath.ToSlash(r.dir) == "internal/model" })
		}) {
			t.Errorf("no mutant of %s is run against the model", row)
		}
	}
}

const whole = `row: P0
run: go test ./a -run '^TestA$'
also: forge test --match-test 'test_A|test_B'
why: money is lost

-- a/a.go --
	return 1
-- with --
	return 2
-- a/a.go --
// old
-- with --
`

func TestParse(t *testing.T) {
	m, err := parseMutant("P0", whole)
	if err != nil {
		t.Fatal(err)
	}
	if m.row != "P0" || m.why != "money is lost" || len(m.runs) != 2 || m.runs[0].match != "^TestA$" || m.runs[1].tool != "forge" {
		t.Errorf("headers: %+v", m)
	}
	want := []edit{{"a/a.go", "\treturn 1\n", "\treturn 2\n"}, {"a/a.go", "// old\n", ""}}
	if len(m.edits) != 2 || m.edits[0] != want[0] || m.edits[1] != want[1] {
		t.Errorf("edits: %+v", m.edits)
	}
}

func TestParseRefuses(t *testing.T) {
	for name, change := range map[string][2]string{
		"no why":                   {"why: money is lost\n", ""},
		"no run":                   {"run: go test ./a -run '^TestA$'\n", ""},
		"an unknown key":           {"row:", "raw:"},
		"a key twice":              {"why:", "row: P1\nwhy:"},
		"no value":                 {"row: P0", "row:"},
		"a quote without an end":   {"'^TestA$'", "'^TestA$"},
		"no test named":            {" -run '^TestA$'", ""},
		"every package":            {"./a ", "./... "},
		"another module":           {"./a ", "/tmp/a "},
		"an unknown flag":          {"./a ", "./a -exec sh "},
		"an unknown program":       {"go test ./a", "make test ./a"},
		"a path outside":           {"-- a/a.go --\n\treturn", "-- ../a.go --\n\treturn"},
		"no replacement":           {"-- with --\n\treturn 2\n", ""},
		"two replacements":         {"\treturn 2\n", "\treturn 2\n-- with --\n"},
		"no change":                {"\treturn 2\n", "\treturn 1\n"},
		"no section":               {whole[strings.Index(whole, "-- a"):], ""},
		"a last line without end":  {"// old\n-- with --\n", "// old\n-- with --"},
		"an unknown flag of forge": {"--match-test", "--fork-url x --match-test"},
	} {
		text := strings.Replace(whole, change[0], change[1], 1)
		if text == whole {
			t.Fatalf("%s: nothing was changed", name)
		}
		if m, err := parseMutant("P0", text); err == nil {
			t.Errorf("%s is taken: %+v", name, m)
		}
	}
}

func TestPlace(t *testing.T) {
	text := "a\n\ta\n}\n}\nb\n"
	for old, at := range map[string]int{"a\n": 0, "\ta\n}\n": 2, "b\n": 9, "}\nb\n": 7} {
		if got, err := place([]byte(text), old); err != nil || got != at {
			t.Errorf("%q is at %d, %v; want %d", old, got, err, at)
		}
	}
	for _, old := range []string{"", "}\n", "c\n", "a\n}\n"} {
		if at, err := place([]byte(text), old); err == nil {
			t.Errorf("%q is found at %d", old, at)
		}
	}
}

// TestJudgement runs real mutants of a small module: only one that its test finds may count as killed.
func TestJudgement(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"go.mod":    "module small\n\ngo 1.26\n",
		"a.go":      "package small\n\nfunc least(a, b int) int {\n\tif a < b {\n\t\treturn a\n\t}\n\treturn b\n}\n",
		"a_test.go": "package small\n\nimport \"testing\"\n\nfunc TestLeast(t *testing.T) {\n\tif least(1, 2) != 1 {\n\t\tt.Fail()\n\t}\n}\n\nfunc TestBad(t *testing.T) { t.Fail() }\n\nfunc TestSkip(t *testing.T) { t.Skip() }\n",
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var list []*mutant
	verdicts := map[string]string{}
	for i, c := range []struct{ test, old, new, verdict string }{
		{"TestLeast", "\tif a < b {\n", "\tif a > b {\n", "killed"},
		{"TestLeast", "\t\treturn a\n", "\t\tpanic(a)\n", "killed"},
		{"TestLeast", "\tif a < b {\n", "\tif a <= b {\n", "SURVIVED"},
		{"TestLeast", "\tif a < b {\n", "\tif a < c {\n", "ERROR"},
		{"TestLeast", "\tif a < c {\n", "\tif a > b {\n", "ERROR"},
		{"TestBad", "\tif a < b {\n", "\tif a > b {\n", "ERROR"},
		{"TestSkip", "\tif a < b {\n", "\tif a > b {\n", "ERROR"},
		{"TestNone", "\tif a < b {\n", "\tif a > b {\n", "ERROR"},
	} {
		m, err := parseMutant(fmt.Sprint("M", i), "row: M\nwhy: w\nrun: go test . -run '^"+c.test+"$'\n-- a.go --\n"+c.old+"-- with --\n"+c.new)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
		verdicts[m.name] = c.verdict
	}
	var out bytes.Buffer
	b := &bench{root: root, slots: make(chan struct{}, 2), out: &out}
	if code, err := b.all(t.Context(), list); code != 1 || err != nil {
		t.Errorf("status %d, %v", code, err)
	}
	for name, verdict := range verdicts {
		if !regexp.MustCompile(`(?m)^` + verdict + ` +` + name + ` `).MatchString(out.String()) {
			t.Errorf("%s is not %s", name, verdict)
		}
	}
	if !strings.HasSuffix(out.String(), "\n2 killed, 1 survived, 5 errors\n") || t.Failed() {
		t.Errorf("output:\n%s", &out)
	}
	out.Reset()
	b = &bench{root: root, slots: make(chan struct{}, 1), out: &out}
	if code, err := b.all(t.Context(), list[:1]); code != 0 || err != nil {
		t.Errorf("only what is killed, and status %d, %v:\n%s", code, err, &out)
	}
}

// TestSchemata: mutants that are compiled together do what they do alone, and the others are compiled alone.
func TestSchemata(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"go.mod": "module small\n\ngo 1.26\n",
		"a.go": "package small\n\nimport \"errors\"\n\nconst least = 1\n\ntype sum struct{ n int }\n\n" +
			"func (s *sum) add(_ string, first int, more ...int) (err error) {\n\ts.n += first\n\tfor _, m := range more {\n\t\ts.n += m\n\t}\n" +
			"\tdefer func() { err = errors.Join(err, recover().(error)) }()\n\tpanic(errors.New(\"end\"))\n}\n\n" +
			"func (s *sum) clear() {\n\ts.n = 0\n}\n\nfunc first[T any](_, a T, _ ...T) T {\n\treturn a\n}\n",
		"a_test.go": "package small\n\nimport \"testing\"\n\nfunc TestSum(t *testing.T) {\n\tvar s sum\n\tif err := s.add(\"\", 1, 2, 3); err == nil || s.n != 6*least {\n\t\tt.Fatal(err, s.n)\n\t}\n" +
			"\tif s.clear(); s.n != 0 || first(1, 2, 3) != 2 {\n\t\tt.Fail()\n\t}\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var list []*mutant
	want := map[string]bool{} // whether it is compiled with the others
	for i, c := range []struct {
		old, new string
		together bool
	}{
		{"\t\ts.n += m\n", "\t\ts.n = m\n", true},
		{"\ts.n += first\n", "\ts.n -= first\n", true},
		{"\tdefer func() { err = errors.Join(err, recover().(error)) }()\n", "\tdefer func() { recover() }()\n", true},
		{"\ts.n = 0\n", "", true},
		{"\treturn a\n", "\tvar none T\n\treturn none\n", true},
		{"const least = 1\n", "const least = 2\n", false},
		{"func (s *sum) clear() {\n\ts.n = 0\n}\n", "func (s *sum) clear() {}\n\nfunc init() {}\n", false},
		{"\treturn a\n", "\tvar unused T\n\treturn a\n", false},
	} {
		m, err := parseMutant(fmt.Sprint("M", i), "row: M\nwhy: w\nrun: go test . -run '^TestSum$'\n-- a.go --\n"+c.old+"-- with --\n"+c.new)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, m)
		if c.together {
			want[m.name] = true
		}
	}
	shop, err := newWorkshop(t.Context(), root, list)
	if err != nil {
		t.Fatal(err)
	}
	defer shop.end()
	if !maps.Equal(shop.all.names, want) {
		t.Errorf("compiled together: %v", shop.all.names)
	}
	if o, err := shop.together(t.Context(), list[0].runs[0], ""); err != nil || o.passed != 1 || o.failed != 0 {
		t.Errorf("with no mutant on: %+v, %v", o, err)
	}
	for name := range want {
		if o, err := shop.together(t.Context(), list[0].runs[0], name); err != nil || o.failed != 1 {
			t.Errorf("with %s on: %+v, %v", name, o, err)
		}
	}
}

// TestForgeOutcome: forge's exit and its own count have to agree, and a failure counts though no sum follows it.
func TestForgeOutcome(t *testing.T) {
	red := errors.New("exit status 1")
	for name, c := range map[string]struct {
		out            string
		err            error
		passed, failed int
		want           error
	}{
		"green":                      {"Suite result: ok. 3 passed; 0 failed; 0 skipped; finished\nSuite result: ok. 1 passed; 0 failed; 0 skipped\n", nil, 4, 0, nil},
		"red":                        {"[FAIL: why] testA()\nSuite result: FAILED. 2 passed; 1 failed; 0 skipped\n\nFailing tests:\n[FAIL: why] testA()\n", red, 2, 1, nil},
		"red without a sum":          {"[FAIL: the balance is not]\n\t[Sequence] (original: 69, shrunk: 9)\n", red, 0, 1, nil},
		"it does not compile":        {"Compiler run failed:\n", red, 0, 0, errUncompiled},
		"it ends without a failure":  {"Suite result: ok. 3 passed; 0 failed; 0 skipped\n", red, 3, 0, errUnclear},
		"it fails and ends as green": {"Suite result: FAILED. 2 passed; 1 failed; 0 skipped\n", nil, 2, 1, errUnclear},
	} {
		o, err := forgeOutcome(c.out, c.err)
		if o.passed != c.passed || o.failed != c.failed || !errors.Is(err, c.want) {
			t.Errorf("%s: %d passed, %d failed, %v", name, o.passed, o.failed, err)
		}
	}
}
