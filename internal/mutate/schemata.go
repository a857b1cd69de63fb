package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Schemata are the tree with many mutants in it, of which an environment variable switches one on: a package is compiled
// once for all of them. A mutant fits in that changes bodies of Go functions and nothing around them.
type schemata struct {
	names map[string]bool
	edits map[string][]body // by path
}

// A body is what a mutant makes of one function of a file.
type body struct {
	mutant   string
	function int // the number of its declaration
	text     string
}

// activeMutant is the environment variable that names the mutant that is switched on.
const activeMutant = "GPUPAY_MUTANT"

// switchFile is compiled into each package that is changed.
const switchFile = `package %s

import "os"

var mutantActive = os.Getenv("` + activeMutant + `")

func mutantOn(name string) bool { return name == mutantActive }
`

// newSchemata takes the mutants that fit. What is wrong with one shows when it is judged alone.
func newSchemata(root string, list []*mutant) *schemata {
	s := &schemata{names: map[string]bool{}, edits: map[string][]body{}}
	for _, m := range list {
		if slices.ContainsFunc(m.runs, func(r runLine) bool { return !r.plain() }) {
			continue
		}
		bodies, err := m.bodies(root)
		if err != nil {
			continue
		}
		s.names[m.name] = true
		for file, of := range bodies {
			s.edits[file] = append(s.edits[file], of...)
		}
	}
	return s
}

// errUnfit is why a mutant is compiled by itself.
var errUnfit = errors.New("it changes more than the bodies of functions")

// bodies are the functions that a mutant changes, by file.
func (m *mutant) bodies(root string) (map[string][]body, error) {
	changed, err := m.apply(root)
	if err != nil {
		return nil, err
	}
	all := map[string][]body{}
	for file, text := range changed {
		old, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(file)))
		if err != nil {
			return nil, err
		}
		if path.Ext(file) != ".go" || ofAnotherModule(root, file) {
			return nil, errUnfit
		}
		before, after, err := parsed(old, text)
		if err != nil {
			return nil, err
		}
		for i, was := range before.decls {
			is := after.decls[i]
			if f, ok := was.(*ast.FuncDecl); ok && f.Body != nil && before.head(f) == after.head(is) {
				if b := after.of(is.(*ast.FuncDecl).Body); b != before.of(f.Body) {
					all[file] = append(all[file], body{mutant: m.name, function: i, text: b})
				}
			} else if before.of(was) != after.of(is) {
				return nil, errUnfit
			}
		}
	}
	return all, nil
}

func ofAnotherModule(root, file string) bool {
	for dir := path.Dir(file); dir != "."; dir = path.Dir(dir) {
		if _, err := os.Stat(filepath.Join(root, filepath.FromSlash(dir), "go.mod")); err == nil {
			return true
		}
	}
	return false
}

// A source is a file that is parsed, and its text.
type source struct {
	text  []byte
	fset  *token.FileSet
	name  string // of its package
	decls []ast.Decl
}

// parsed gives two versions of a file that have the same declarations in the same order.
func parsed(old, text []byte) (before, after source, err error) {
	if before, err = parse(old); err != nil {
		return before, after, err
	}
	if after, err = parse(text); err == nil && len(before.decls) != len(after.decls) {
		err = errUnfit
	}
	return before, after, err
}

func parse(text []byte) (source, error) {
	s := source{text: text, fset: token.NewFileSet()}
	file, err := parser.ParseFile(s.fset, "", text, parser.SkipObjectResolution)
	if err == nil {
		s.name, s.decls = file.Name.Name, file.Decls
	}
	return s, err
}

func (s source) offset(p token.Pos) int { return s.fset.PositionFor(p, false).Offset }

func (s source) of(n ast.Node) string { return string(s.text[s.offset(n.Pos()):s.offset(n.End())]) }

// head is a function's text before its body, and nothing of what is no function.
func (s source) head(d ast.Decl) string {
	f, ok := d.(*ast.FuncDecl)
	if !ok || f.Body == nil {
		return ""
	}
	return string(s.text[s.offset(f.Pos()):s.offset(f.Body.Pos())])
}

// write gives the files that replace the tree's, by path.
func (s *schemata) write(root string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for file, bodies := range s.edits {
		if len(bodies) == 0 {
			continue
		}
		text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(file)))
		if err != nil {
			return nil, err
		}
		from, err := parse(text)
		if err != nil {
			return nil, err
		}
		files[file] = from.switched(path.Base(file), bodies)
		files[path.Join(path.Dir(file), "mutant_switch.go")] = fmt.Appendf(nil, switchFile, from.name)
	}
	return files, nil
}

// switched has each function begin with its mutants. The line comments have the compiler name the mutant that is wrong.
func (s source) switched(file string, bodies []body) []byte {
	var out bytes.Buffer
	done := 0
	for i, d := range s.decls {
		for _, b := range bodies {
			if b.function != i {
				continue
			}
			f := d.(*ast.FuncDecl)
			at := s.offset(f.Body.Lbrace) + 1
			out.Write(s.text[done:at])
			done = at
			line := s.fset.PositionFor(f.Body.Lbrace, false).Line
			fmt.Fprintf(&out, "\n//line %s.mutant:1\n%s\n//line %s:%d\n", b.mutant, s.call(f, b), file, line)
		}
	}
	out.Write(s.text[done:])
	return out.Bytes()
}

// call runs a mutant's body as a function of its own, with the same names for the same values.
func (s source) call(f *ast.FuncDecl, b body) string {
	var declared, given []string
	for _, field := range f.Type.Params.List {
		var names []string
		for _, n := range field.Names {
			if n.Name != "_" {
				names = append(names, n.Name)
			}
		}
		if len(names) == 0 {
			continue
		}
		declared = append(declared, strings.Join(names, ", ")+" "+s.of(field.Type))
		if _, variadic := field.Type.(*ast.Ellipsis); variadic {
			names[0] += "..."
		}
		given = append(given, names...)
	}
	results := ""
	if f.Type.Results != nil {
		results = s.of(f.Type.Results)
	}
	call := fmt.Sprintf("func(%s) %s %s(%s)", strings.Join(declared, ", "), results, b.text, strings.Join(given, ", "))
	if results == "" {
		return fmt.Sprintf("if mutantOn(%q) { %s; return }", b.mutant, call)
	}
	return fmt.Sprintf("if mutantOn(%q) { return %s }", b.mutant, call)
}

var blamedMutant = regexp.MustCompile(`([^/\s]+)\.mutant:\d+`)

// compiled writes an overlay in which every package compiles, and takes out the mutants that do not.
func (s *schemata) compiled(ctx context.Context, root, dir string) (string, error) {
	for {
		files, err := s.write(root)
		if err != nil {
			return "", err
		}
		overlay, err := writeOverlay(root, dir, files)
		if err != nil || len(files) == 0 {
			return overlay, err
		}
		var packages []string
		for file := range files {
			packages = append(packages, "./"+path.Dir(file))
		}
		slices.Sort(packages)
		args := append([]string{"build", "-overlay=" + overlay}, slices.Compact(packages)...)
		out, err := command(ctx, root, []string{compilerMemory}, "go", args...)
		if err == nil {
			return overlay, nil
		}
		before := len(s.names)
		for _, name := range blamedMutant.FindAllSubmatch(out, -1) {
			s.remove(string(name[1]))
		}
		if len(s.names) == before {
			return "", fmt.Errorf("compiling the tree with all mutants: %w\n%s", err, out)
		}
	}
}

func (s *schemata) remove(name string) {
	delete(s.names, name)
	for _, file := range slices.Collect(maps.Keys(s.edits)) {
		s.edits[file] = slices.DeleteFunc(s.edits[file], func(b body) bool { return b.mutant == name })
	}
}
