// Package internal holds which package of the module may import which.
package internal

import (
	"bytes"
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"io/fs"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/gpupay/gpupay/"

// layout lists packages from the lowest floor up, each with the packages of this module that it may import. All of those stand
// above it in the table, so that no arrow points up.
var layout = []struct{ pkg, may string }{
	{"internal/exactjson", ""},
	{"internal/fault", ""},
	{"internal/redact", ""},
	{"internal/eip712", ""},
	{"internal/u256", ""},

	{"bindings", ""},
	{"bindings/batchsettlement", ""},
	{"channel", "internal/eip712 internal/fault internal/u256"},
	{"channel/store", "channel internal/fault internal/redact"},
	{"metering/merkle", ""},
	{"metering/internal/ident", ""},
	{"metering", "internal/eip712 internal/exactjson metering/internal/ident metering/merkle"},
	{"metering/usage", "metering metering/internal/ident metering/merkle"},
	{"metering/sampling", "metering metering/usage"},
	{"metering/verify", "internal/eip712 metering metering/internal/ident"},
	{"metering/nvml", "metering"},
	{"metering/sim", "metering"},
	{"metering/slots", "internal/eip712 metering metering/merkle metering/usage metering/verify"},
	{"metering/trace", "metering metering/sampling metering/usage"},

	{"sdk/internal/awake", ""},
	{"sdk/internal/keyed", ""},
	{"sdk/internal/run", ""},
	{"sdk/internal/serve", ""},
	{"sdk/internal/reach", "internal/redact"},
	{"sdk/internal/database", "channel/store"},
	{"sdk/route", ""},
	{"sdk/budget", "channel/store internal/redact sdk/internal/database sdk/route"},
	{"sdk/internal/highwater", "channel/store internal/redact"},
	{"sdk/internal/inventory", "metering metering/usage"},
	{"sdk/internal/billed", "metering"},
	{"sdk/internal/gpumetrics", "metering sdk/internal/inventory"},
	{"sdk/limit", ""},
	{"sdk/acme", ""},
	{"sdk/route/sim", "sdk/route"},
	{"sdk/service", ""},
	{"sdk/units", "channel metering"},
	{"sdk/wire", "channel metering internal/eip712 internal/exactjson sdk/internal/reach"},
	{"sdk/node/nodekeys", "channel"},
	{"sdk/x402", "channel metering sdk/wire"},
	{"sdk/internal/cors", "sdk/x402"},
	{"sdk/internal/pace", ""},
	{"sdk/internal/refusal", ""},
	{"sdk/internal/secretpath", "internal/redact"},
	{"sdk/internal/upstream", "internal/redact sdk/internal/pace sdk/internal/reach sdk/internal/serve"},
	{"sdk/internal/rows", "channel internal/eip712"},
	{"sdk/chain", "bindings bindings/batchsettlement channel channel/store internal/eip712 internal/fault internal/redact sdk/internal/reach " +
		"sdk/internal/pace sdk/internal/refusal sdk/internal/rows sdk/internal/secretpath"},
	{"sdk/internal/outcome", "sdk/chain"},

	{"sdk/gpu", "metering sdk/internal/inventory sdk/internal/run"},
	{"sdk/internal/nodelink", "channel channel/store internal/exactjson internal/redact metering sdk/chain sdk/gpu sdk/internal/database " +
		"sdk/internal/inventory sdk/node/nodekeys sdk/wire"},
	{"sdk/internal/admit", "channel sdk/chain sdk/internal/serve sdk/limit sdk/wire"},
	{"sdk/sweep", "channel sdk/chain sdk/internal/admit"},
	{"sdk/internal/cluster", "channel/store sdk/chain sdk/internal/database sdk/internal/inventory sdk/internal/run"},
	{"sdk/settle", "channel internal/fault sdk/chain sdk/internal/outcome sdk/internal/run"},
	{"sdk/internal/peer", "channel internal/redact sdk/internal/reach sdk/wire"},
	{"sdk/internal/boundlog", "sdk/internal/reach"},
	{"sdk/internal/evidence", "metering"},
	{"sdk/audit", "bindings channel internal/eip712 internal/exactjson internal/redact internal/u256 metering metering/merkle metering/verify sdk/chain sdk/internal/billed sdk/wire"},
	{"sdk/internal/leasestore", "channel channel/store internal/fault metering metering/usage sdk/audit sdk/chain sdk/gpu sdk/internal/database sdk/internal/inventory sdk/wire"},
	{"sdk/internal/placement", "channel metering sdk/chain sdk/gpu sdk/internal/highwater sdk/internal/inventory sdk/internal/keyed sdk/internal/leasestore sdk/internal/run sdk/wire"},
	{"sdk/internal/contain", "metering sdk/gpu sdk/internal/inventory sdk/internal/placement sdk/internal/run"},
	{"sdk/internal/payercredit", "channel channel/store internal/u256 sdk/chain sdk/internal/leasestore sdk/units sdk/wire"},
	{"sdk/internal/sharing", "metering metering/sampling metering/slots metering/usage sdk/gpu sdk/internal/inventory sdk/internal/placement sdk/wire"},
	{"sdk/internal/lease", "channel internal/fault internal/u256 metering metering/sampling metering/usage sdk/chain sdk/gpu sdk/internal/gpumetrics sdk/internal/highwater sdk/internal/inventory sdk/internal/keyed sdk/internal/leasestore sdk/internal/payercredit sdk/internal/placement " +
		"sdk/internal/run sdk/internal/sharing sdk/wire"},
	{"sdk/internal/gateways", "channel channel/store metering sdk/chain sdk/gpu sdk/internal/cluster sdk/internal/inventory sdk/internal/lease sdk/internal/leasestore " +
		"sdk/internal/placement sdk/internal/run sdk/settle sdk/wire"},
	{"sdk/internal/reserve", "channel/store sdk/gpu sdk/internal/cluster"},
	{"sdk/internal/offering", "channel metering sdk/chain sdk/internal/inventory sdk/internal/leasestore sdk/wire"},
	{"sdk/internal/scheme", "channel sdk/chain sdk/internal/admit sdk/internal/inventory sdk/internal/keyed sdk/internal/lease sdk/internal/leasestore sdk/internal/reserve sdk/wire"},
	{"sdk/internal/sessionscheme", "channel channel/store internal/eip712 internal/fault internal/u256 metering sdk/chain sdk/internal/admit " +
		"sdk/internal/highwater sdk/internal/keyed sdk/internal/lease sdk/internal/leasestore sdk/internal/outcome sdk/internal/reserve sdk/internal/scheme " +
		"sdk/internal/serve sdk/wire"},
	{"sdk/internal/x402server", "channel channel/store internal/u256 metering sdk/chain sdk/internal/admit sdk/internal/leasestore sdk/internal/outcome sdk/internal/serve sdk/wire sdk/x402"},
	{"sdk/internal/x402scheme", "channel internal/u256 metering sdk/chain sdk/gpu sdk/internal/admit sdk/internal/cors sdk/internal/inventory sdk/internal/keyed " +
		"sdk/internal/lease sdk/internal/leasestore sdk/internal/outcome sdk/internal/payercredit sdk/internal/placement sdk/internal/reserve sdk/internal/scheme " +
		"sdk/internal/serve sdk/internal/sharing sdk/internal/x402server sdk/settle sdk/wire sdk/x402"},
	{"sdk/internal/spool", "channel sdk/internal/database sdk/internal/leasestore sdk/internal/nodelink sdk/wire"},
	{"sdk/internal/remote", "channel channel/store internal/u256 metering metering/verify sdk/chain sdk/gpu sdk/internal/lease sdk/internal/leasestore " +
		"sdk/internal/nodelink sdk/internal/payercredit sdk/internal/placement sdk/units sdk/wire"},
	{"sdk/node", "metering sdk/chain sdk/gpu sdk/internal/contain sdk/internal/gpumetrics sdk/internal/highwater sdk/internal/inventory sdk/internal/keyed sdk/internal/lease " +
		"sdk/internal/leasestore sdk/internal/nodelink sdk/internal/placement sdk/internal/serve sdk/internal/spool sdk/node/nodekeys sdk/wire"},
	{"sdk/wallet", "channel channel/store metering metering/verify sdk/audit sdk/chain sdk/internal/billed sdk/internal/boundlog sdk/internal/database " +
		"sdk/internal/evidence sdk/internal/peer sdk/units sdk/wire"},
	{"sdk/internal/ticks", "channel internal/u256 metering metering/verify sdk/internal/billed sdk/internal/peer sdk/wire"},
	{"sdk/internal/x402account", "channel channel/store metering sdk/audit sdk/chain sdk/internal/peer sdk/internal/ticks sdk/wallet sdk/wire sdk/x402"},
	{"sdk/x402/x402client", "channel internal/exactjson internal/fault internal/u256 metering sdk/audit sdk/chain " +
		"sdk/internal/boundlog sdk/internal/evidence sdk/internal/outcome sdk/internal/peer sdk/internal/reach sdk/internal/ticks sdk/internal/x402account " +
		"sdk/units sdk/wallet sdk/wire sdk/x402"},
	{"sdk/tower", "channel channel/store internal/exactjson internal/redact sdk/chain sdk/internal/database sdk/internal/keyed " +
		"sdk/internal/outcome sdk/internal/reach sdk/internal/run sdk/internal/serve sdk/limit sdk/settle sdk/units sdk/wire"},
	{"sdk/internal/sharedcredit", "channel internal/u256 metering sdk/internal/billed sdk/wire"},
	{"sdk/internal/rental", "channel internal/fault internal/u256 metering metering/slots metering/verify sdk/chain sdk/internal/billed sdk/internal/boundlog " +
		"sdk/internal/outcome sdk/internal/peer sdk/internal/sharedcredit sdk/units sdk/wallet sdk/wire"},
	{"sdk/internal/paystream", "channel internal/exactjson internal/fault internal/u256 metering metering/slots metering/verify sdk/audit sdk/chain sdk/internal/awake " +
		"sdk/internal/billed sdk/internal/boundlog sdk/internal/evidence sdk/internal/peer sdk/internal/rental sdk/internal/sharedcredit " +
		"sdk/wallet sdk/wire"},
	{"sdk/renter", "channel channel/store internal/fault internal/u256 metering sdk/audit sdk/chain sdk/gpu sdk/internal/boundlog " +
		"sdk/internal/paystream sdk/internal/peer sdk/internal/rental sdk/internal/sharedcredit sdk/units sdk/wallet sdk/wire"},
	{"sdk/pool", "channel internal/exactjson internal/redact internal/u256 metering metering/slots sdk/budget sdk/chain sdk/internal/boundlog sdk/renter sdk/route sdk/units sdk/wallet sdk/wire"},
	{"sdk/internal/continuation", ""},
	{"sdk/proxy", "internal/redact sdk/budget sdk/internal/continuation sdk/internal/serve sdk/internal/upstream sdk/pool sdk/route sdk/units sdk/wallet sdk/wire"},
	{"sdk/fund", "sdk/internal/serve sdk/units"},
	{"sdk/doctor", "channel/store internal/redact metering sdk/chain sdk/internal/admit sdk/internal/database sdk/internal/leasestore sdk/internal/peer " +
		"sdk/internal/reach sdk/internal/upstream sdk/sweep sdk/units sdk/wire"},
	{"sdk/ledger", "bindings bindings/batchsettlement channel channel/store internal/u256 metering sdk/chain sdk/internal/database sdk/internal/leasestore sdk/internal/rows sdk/units sdk/wallet"},

	{"metering/internal/rig", "internal/eip712 metering metering/usage"}, // of tests
	{"bindings/batchsettlement/standin", ""},
	{"bindings/testtoken", ""},
	{"internal/browser", ""},
	{"internal/chaintest", "bindings/batchsettlement/standin bindings/testtoken channel sdk/chain"},
	{"sdk/internal/rig", "channel channel/store internal/chaintest metering metering/sim metering/usage sdk/chain sdk/internal/outcome sdk/node/nodekeys sdk/wire sdk/x402"}, // of tests
	{"sdk/internal/rig/ticketscheme", "channel channel/store sdk/chain sdk/internal/keyed sdk/internal/lease sdk/internal/leasestore " +
		"sdk/internal/scheme sdk/internal/serve sdk/wire"}, // of tests
}

// TestImportsPointOneWay: a package of the table imports what its row names and nothing else of the module, on no system.
func TestImportsPointOneWay(t *testing.T) {
	var below []string
	for _, row := range layout {
		may := strings.Fields(row.may)
		for _, pkg := range may {
			if !slices.Contains(below, pkg) {
				t.Errorf("%s may import %s, which is not above it in the table", row.pkg, pkg)
			}
		}
		for file, pkg := range imports(t, row.pkg) {
			if !slices.Contains(may, pkg) {
				t.Errorf("%s imports %s, which is not below it: move what both need to a lower package", file, pkg)
			}
		}
		below = append(below, row.pkg)
	}
}

// TestProductHoldsNoTests: what tests run against is imported by tests alone.
func TestProductHoldsNoTests(t *testing.T) {
	const rigs = "sdk/internal/rig"
	eachSource(t, func(folder string, file *ast.File, _ func(token.Pos) int) {
		for _, spec := range file.Imports {
			if strings.HasPrefix(strings.Trim(spec.Path.Value, `"`), module+rigs) && !strings.HasPrefix(folder, rigs) {
				t.Errorf("%s imports %s, which is of tests", folder, spec.Path.Value)
			}
		}
	})
}

// TestRenterLinksNoProvider: a renter's program has neither the provider nor the metrics library in it.
func TestRenterLinksNoProvider(t *testing.T) {
	list, err := exec.Command("go", "list", "-deps", module+"sdk/renter").Output()
	if err != nil || !strings.Contains(string(list), module+"sdk/wallet") {
		t.Fatal(err)
	}
	for pkg := range strings.Lines(string(list)) {
		if strings.HasPrefix(pkg, module+"sdk/provider") || strings.Contains(pkg, "prometheus") {
			t.Errorf("sdk/renter links %s", strings.TrimSpace(pkg))
		}
	}
}

// TestRoutingLinksNoChain: who chooses endpoints has neither a chain's client nor any other module in its program, but the integers.
func TestRoutingLinksNoChain(t *testing.T) {
	list, err := exec.Command("go", "list", "-deps", module+"sdk/route/sim").Output()
	if err != nil || !strings.Contains(string(list), module+"sdk/route") {
		t.Fatal(err)
	}
	for pkg := range strings.Lines(string(list)) {
		if strings.Contains(pkg, ".") && !strings.HasPrefix(pkg, module+"sdk/route") && !strings.HasPrefix(pkg, "github.com/holiman/uint256") {
			t.Errorf("sdk/route/sim links %s", strings.TrimSpace(pkg))
		}
	}
}

// imports are the files of a package and the packages of this module that they import, tests apart.
func imports(t *testing.T, pkg string) iter.Seq2[string, string] {
	files, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(pkg), "*.go"))
	if err != nil || len(files) == 0 {
		t.Errorf("there is no package %s: %v", pkg, err)
	}
	return func(yield func(file, pkg string) bool) {
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Error(err)
				continue
			}
			for _, spec := range parsed.Imports {
				path, ours := strings.CutPrefix(strings.Trim(spec.Path.Value, `"`), module)
				if ours && !yield(file, path) {
					return
				}
			}
		}
	}
}

// TestPackagesHaveExamples: a package that strangers import shows by an example what it is for, and the example is run. Whatever reads
// a real GPU is compiled only.
func TestPackagesHaveExamples(t *testing.T) {
	for _, row := range layout {
		if strings.HasPrefix(row.pkg, "internal/") || strings.Contains(row.pkg, "/internal/") || strings.HasPrefix(row.pkg, "bindings") {
			continue
		}
		files, err := filepath.Glob(filepath.Join("..", filepath.FromSlash(row.pkg), "*_test.go"))
		if err != nil {
			t.Error(err)
		}
		shows, runs := false, false
		for _, file := range files {
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			for _, example := range doc.Examples(parsed) {
				shows, runs = true, runs || example.Output != ""
			}
		}
		if !shows || !runs && row.pkg != "metering/nvml" {
			t.Errorf("%s has no Example with an Output: show the one thing that a stranger comes for", row.pkg)
		}
	}
}

// mostMethods is how many methods a type has at most: one that has more changes for more than one reason.
const mostMethods = 40

// TestTypesAreSmall: no type has more than mostMethods methods of its own, generated ones apart.
func TestTypesAreSmall(t *testing.T) {
	have := make(map[string]int)
	eachSource(t, func(folder string, file *ast.File, _ func(token.Pos) int) {
		for _, decl := range file.Decls {
			if method, ok := decl.(*ast.FuncDecl); ok && method.Recv != nil {
				have[folder+"."+receiver(method.Recv.List[0].Type)]++
			}
		}
	})
	atMost(t, "methods", have, mostMethods, nil)
}

// mostOfAFunction is how many lines a function has at most: what is longer is not read at one look.
const mostOfAFunction = 59

// TestFunctionsAreShort: no function has more than mostOfAFunction lines.
func TestFunctionsAreShort(t *testing.T) {
	have := make(map[string]int)
	eachSource(t, func(folder string, file *ast.File, line func(token.Pos) int) {
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok {
				name := folder + "." + f.Name.Name
				have[name] = max(have[name], line(f.End())-line(f.Pos())+1)
			}
		}
	})
	atMost(t, "lines", have, mostOfAFunction, nil)
}

// mostLines is how many lines of product code a package has at most: one that has more is several.
const mostLines = 2600

// long are the packages of before that have more, each with how many. No number grows, and none is added. The chain's clients stay
// one package: each part of them is of no use alone.
var long = map[string]int{
	"sdk/chain": 7426,
}

// TestPackagesAreSmall: no package has more than mostLines lines, generated ones apart.
func TestPackagesAreSmall(t *testing.T) {
	have := make(map[string]int)
	eachSource(t, func(folder string, file *ast.File, line func(token.Pos) int) { have[folder] += line(file.FileEnd) - 1 })
	atMost(t, "lines", have, mostLines, long)
}

// TestSubcommandsAreThin: a subcommand is flags, configuration and one call: its file has fewer than 150 lines.
func TestSubcommandsAreThin(t *testing.T) {
	files, err := filepath.Glob("../cmd/gpupay/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(text, []byte{'\n'}); n >= 150 && !strings.HasSuffix(file, "_test.go") {
			t.Errorf("%s has %d lines: what it does belongs into a package, with an example", file, n)
		}
	}
}

// atMost holds sizes to a bound, and those of before to what they are.
func atMost(t *testing.T, what string, have map[string]int, most int, before map[string]int) {
	t.Helper()
	for name, n := range have {
		if n > max(most, before[name]) {
			t.Errorf("%s has %d %s, and may have %d: cut it by reason of change into parts that call only downwards", name, n, what, max(most, before[name]))
		}
	}
	for name, n := range before {
		if have[name] <= most {
			t.Logf("%s has %d %s: take it off the list", name, have[name], what)
		} else if have[name] < n {
			t.Logf("%s has %d %s: write that down instead of %d", name, have[name], what, n)
		}
	}
}

// eachSource goes through the files of all packages, but tests and what is generated.
func eachSource(t *testing.T, visit func(folder string, file *ast.File, line func(token.Pos) int)) {
	t.Helper()
	err := filepath.WalkDir("..", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (entry.Name() == "node_modules" || entry.Name() == "testdata" || entry.Name() == ".git"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, path, nil, parser.ParseComments)
		if err != nil || ast.IsGenerated(file) {
			return err
		}
		folder := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), ".."+string(filepath.Separator)))
		visit(folder, file, files.File(file.FileStart).Line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// receiver is the name of a method's type.
func receiver(of ast.Expr) string {
	for {
		switch at := of.(type) {
		case *ast.StarExpr:
			of = at.X
		case *ast.IndexExpr:
			of = at.X
		case *ast.IndexListExpr:
			of = at.X
		case *ast.Ident:
			return at.Name
		default:
			return ""
		}
	}
}
