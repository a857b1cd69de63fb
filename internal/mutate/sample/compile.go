package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/tools/go/packages"
)

// find lists the mutations of a package that a target's groups draw from, in no order.
func find(root string, t target, dir string) (map[string][]*mutation, string, error) {
	loaded, err := packages.Load(&packages.Config{Dir: root, Mode: packages.NeedName | packages.NeedFiles | packages.NeedCompiledGoFiles |
		packages.NeedImports | packages.NeedExportFile | packages.NeedTypes | packages.NeedTypesSizes | packages.NeedSyntax | packages.NeedTypesInfo}, "./"+dir)
	if err != nil || len(loaded) != 1 || len(loaded[0].Errors) > 0 {
		return nil, "", fmt.Errorf("loading %s: %v %v", dir, err, loaded)
	}
	pkg := loaded[0]
	all := map[string][]*mutation{}
	counts := map[string]map[string]int{}
	for i, file := range pkg.Syntax {
		path := pkg.CompiledGoFiles[i]
		group := t.groupOf(dir, filepath.Base(path))
		if group == "" {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, "", err
		}
		if counts[group] == nil {
			counts[group] = map[string]int{}
		}
		f := &finder{group: group, file: path, text: text, fset: pkg.Fset, info: pkg.TypesInfo, counts: counts[group]}
		f.walk(file)
		all[group] = append(all[group], f.found...)
	}
	return all, pkg.Name, nil
}

// draw takes the mutations of a group whose names have the least hashes under a seed: those of code that does not change
// stay drawn when other code does.
func draw(all []*mutation, seed string, n int) []*mutation {
	rank := func(m *mutation) string {
		sum := sha256.Sum256([]byte(seed + " " + m.id))
		return string(sum[:])
	}
	slices.SortFunc(all, func(a, b *mutation) int { return cmp.Compare(rank(a), rank(b)) })
	return all[:min(n, len(all))]
}

// helpers are compiled into the package that is mutated.
const helpers = `package %s

import (
	"os"
	"strconv"
	"sync"
)

var (
	mutantActive, _ = strconv.Atoi(os.Getenv("GPUPAY_MUTANT"))
	mutantTrace     = os.Getenv("GPUPAY_MUTANT_TRACE")
	mutantSeen      sync.Map
)

func mutantOn(id int) bool {
	if mutantTrace != "" {
		mutantReached(id)
	}
	return id == mutantActive
}

func mutantReached(id int) {
	if _, seen := mutantSeen.LoadOrStore(id, true); seen {
		return
	}
	file, err := os.OpenFile(mutantTrace, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	defer file.Close()
	if _, err := file.WriteString(strconv.Itoa(id) + "\n"); err != nil {
		panic(err)
	}
}

type mutantNumber interface {
	~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~float64
}

func mutantNot(id int, c bool) bool { return c != mutantOn(id) }

func mutantAdd[T mutantNumber](id int, a, b T) T {
	if mutantOn(id) {
		return a - b
	}
	return a + b
}

func mutantSub[T mutantNumber](id int, a, b T) T {
	if mutantOn(id) {
		return a + b
	}
	return a - b
}

func mutantPlus[T mutantNumber](id int, a T) T {
	if mutantOn(id) {
		return a + 1
	}
	return a
}

func mutantPick[T any](id int, mutated, original T) T {
	if mutantOn(id) {
		return mutated
	}
	return original
}

var _, _, _, _, _ = mutantNot, mutantAdd[int], mutantSub[int], mutantPlus[int], mutantPick[int]
`

// An insertion is text that goes before an offset.
type insertion struct {
	at    int
	class int // at one offset: what ends comes before what begins
	order int
	text  string
}

// rewrite puts mutations into a file. They may lie within each other.
func rewrite(text []byte, list []*mutation) []byte {
	var all []insertion
	cuts := map[int]*mutation{}
	for _, m := range list {
		number := strconv.Itoa(m.number)
		all = append(all,
			insertion{m.start, 1, -m.end, strings.ReplaceAll(m.before, "%d", number)},
			insertion{m.end, 0, -m.start, strings.ReplaceAll(m.after, "%d", number)})
		if m.cut != "" {
			cuts[m.cutAt] = m
		}
	}
	slices.SortStableFunc(all, func(a, b insertion) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.class, b.class), cmp.Compare(a.order, b.order))
	})
	var out bytes.Buffer
	for at := 0; at <= len(text); at++ {
		for len(all) > 0 && all[0].at == at {
			out.WriteString(all[0].text)
			all = all[1:]
		}
		if m := cuts[at]; m != nil {
			out.WriteString(m.replaceBy)
			at += len(m.cut) - 1
		} else if at < len(text) {
			out.WriteByte(text[at])
		}
	}
	return out.Bytes()
}

var compileError = regexp.MustCompile(`(?m)^(?:\./)?(\S+\.go):(\d+):\d+: .*$`)

// compile makes one test binary that has all mutations, each off unless it is named. A mutation that does not compile is
// taken out and said.
func compile(ctx context.Context, root, scratch, tests string, names map[string]string, list []*mutation) ([]*mutation, string, error) {
	binary := filepath.Join(scratch, "mutants.test")
	for {
		if err := overlay(root, scratch, names, list); err != nil {
			return nil, "", err
		}
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-vet=off", "-overlay="+filepath.Join(scratch, "overlay.json"), "-o", binary, "./"+tests)
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		if err == nil {
			return list, binary, nil
		}
		bad := map[*mutation]string{}
		for _, e := range compileError.FindAllStringSubmatch(string(out), -1) {
			line, _ := strconv.Atoi(e[2])
			if m := blame(scratch, e[1], line, list); m != nil {
				bad[m] = e[0]
			}
		}
		if len(bad) == 0 {
			return nil, "", fmt.Errorf("the mutants of %s do not compile:\n%s", tests, out)
		}
		for m, why := range bad {
			fmt.Printf("left out  %s: %s\n", m.id, why)
		}
		list = slices.DeleteFunc(slices.Clone(list), func(m *mutation) bool { return bad[m] != "" })
	}
}

var mutantNumber = regexp.MustCompile(`mutant\w+\((\d+)`)

// blame finds the mutation on a line of a rewritten file.
func blame(scratch, file string, line int, list []*mutation) *mutation {
	text, err := os.ReadFile(filepath.Join(scratch, scratchName(file)))
	if err != nil {
		if text, err = os.ReadFile(filepath.Join(scratch, filepath.Base(file))); err != nil {
			return nil
		}
	}
	lines := strings.Split(string(text), "\n")
	for _, near := range []int{line - 1, line - 2, line} {
		if near < 0 || near >= len(lines) {
			continue
		}
		if m := mutantNumber.FindStringSubmatch(lines[near]); m != nil {
			number, _ := strconv.Atoi(m[1])
			if at := slices.IndexFunc(list, func(m *mutation) bool { return m.number == number }); at >= 0 {
				return list[at]
			}
		}
	}
	return nil
}

// scratchName is what a file's changed text is called.
func scratchName(file string) string {
	return strings.ReplaceAll(strings.TrimLeft(file, "./"), "/", "_")
}

func overlay(root, scratch string, names map[string]string, list []*mutation) error {
	byFile := map[string][]*mutation{}
	for _, m := range list {
		byFile[m.file] = append(byFile[m.file], m)
	}
	replace := map[string]string{}
	for dir, name := range names {
		file := filepath.Join(dir, "zz_mutant.go")
		helper := filepath.Join(scratch, scratchName(file))
		if err := os.WriteFile(helper, fmt.Appendf(nil, helpers, name), 0o600); err != nil {
			return err
		}
		replace[filepath.Join(root, file)] = helper
	}
	for file, of := range byFile {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		path, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		changed := filepath.Join(scratch, scratchName(path))
		if err := os.WriteFile(changed, rewrite(text, of), 0o600); err != nil {
			return err
		}
		replace[file] = changed
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(scratch, "overlay.json"), text, 0o600)
}
