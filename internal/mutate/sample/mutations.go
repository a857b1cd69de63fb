package main

import (
	"fmt"
	"go/ast"
	"go/token"
	"go/types"
	"strings"

	"golang.org/x/tools/go/ast/astutil"
)

// A mutation is one small change of the sources, which a compiled test turns on by its number.
type mutation struct {
	id     string // group, function, operator and which of its kind there: it stays when code elsewhere changes
	number int    // in the compiled test; counted from 1
	file   string
	line   int
	what   string // for people: the old text and what becomes of it

	start, end     int    // offsets of what is wrapped
	before, after  string // with %d for the number
	cut, replaceBy string // a token within it that is replaced, and by what
	cutAt          int
}

// A finder collects the mutations of one file.
type finder struct {
	group string
	file  string
	text  []byte
	fset  *token.FileSet
	info  *types.Info

	function string
	counts   map[string]int
	found    []*mutation
}

func (f *finder) source(n ast.Node) string {
	return string(f.text[f.offset(n.Pos()):f.offset(n.End())])
}

func (f *finder) offset(p token.Pos) int { return f.fset.Position(p).Offset }

// add notes a mutation that wraps a node.
func (f *finder) add(n ast.Node, op, before, after, what string) *mutation {
	name := f.function + " " + op
	f.counts[name]++
	m := &mutation{
		id: fmt.Sprintf("%s %s %d", f.group, name, f.counts[name]), file: f.file, line: f.fset.Position(n.Pos()).Line,
		start: f.offset(n.Pos()), end: f.offset(n.End()), before: before, after: after,
		what: strings.Join(strings.Fields(f.source(n)), " ") + " -> " + what,
	}
	f.found = append(f.found, m)
	return m
}

// walk looks at every function of a file.
func (f *finder) walk(file *ast.File) {
	for _, decl := range file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		f.function = fn.Name.Name
		if fn.Recv != nil {
			f.function = strings.TrimLeft(f.source(fn.Recv.List[0].Type), "*") + "." + fn.Name.Name
		}
		astutil.Apply(fn.Body, func(c *astutil.Cursor) bool {
			if n := c.Node(); n != nil {
				return f.visit(c, n)
			}
			return true
		}, nil)
	}
}

func (f *finder) visit(c *astutil.Cursor, n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GenDecl:
		return n.Tok != token.CONST
	case *ast.ArrayType, *ast.IndexExpr, *ast.SliceExpr:
		return false // sizes and places: another one does not compile, or ends the program
	case *ast.IfStmt:
		f.add(n.Cond, "negate", "mutantNot(%d, (", "))", "negated")
	case *ast.BinaryExpr:
		f.binary(n)
	case *ast.ReturnStmt:
		f.dropError(c, n)
	case *ast.ExprStmt:
		return f.dropCall(c, n)
	case *ast.BasicLit:
		f.literal(c, n)
	case *ast.CallExpr:
		if name, ok := n.Fun.(*ast.Ident); ok && (name.Name == "make" || name.Name == "append") {
			return false
		}
		f.compared(n)
		f.added(n)
	}
	return true
}

// binary changes comparisons and sums.
func (f *finder) binary(n *ast.BinaryExpr) {
	x, y := f.source(n.X), f.source(n.Y)
	if tv := f.info.Types[n]; tv.Value != nil {
		return // a constant
	}
	switch n.Op {
	case token.EQL, token.NEQ:
		f.add(n, "equal", "((", ") != mutantOn(%d))", "the opposite")
	case token.LSS, token.GTR:
		f.add(n, "boundary", "(", " || mutantOn(%d) && "+x+" == "+y+")", "or equal")
	case token.LEQ, token.GEQ:
		f.add(n, "boundary", "(", " && !(mutantOn(%d) && "+x+" == "+y+"))", "and not equal")
	case token.ADD, token.SUB:
		basic, ok := f.info.TypeOf(n).Underlying().(*types.Basic)
		if !ok || basic.Info()&types.IsNumeric == 0 {
			return
		}
		name := map[token.Token]string{token.ADD: "mutantAdd", token.SUB: "mutantSub"}[n.Op]
		m := f.add(n, "sum", name+"(%d, ", ")", "the other sign")
		m.cut, m.replaceBy, m.cutAt = n.Op.String(), ",", f.offset(n.OpPos)
	}
}

// compared changes what amounts are held to: x.Gt(&y) is also true if they are equal.
func (f *finder) compared(n *ast.CallExpr) {
	s, ok := n.Fun.(*ast.SelectorExpr)
	if !ok || len(n.Args) != 1 || (s.Sel.Name != "Lt" && s.Sel.Name != "Gt") || !strings.HasSuffix(f.info.TypeOf(s.X).String(), "uint256.Int") {
		return
	}
	f.add(n, "boundary", "(", " || mutantOn(%d) && ("+f.source(s.X)+").Eq("+f.source(n.Args[0])+"))", "or equal")
}

// added changes sums of big numbers.
func (f *finder) added(n *ast.CallExpr) {
	s, ok := n.Fun.(*ast.SelectorExpr)
	if !ok || len(n.Args) != 2 || (s.Sel.Name != "Add" && s.Sel.Name != "Sub") || !strings.HasSuffix(f.info.TypeOf(s.X).String(), ".Int") {
		return
	}
	other := map[string]string{"Add": "Sub", "Sub": "Add"}[s.Sel.Name]
	f.add(s, "sum", "mutantPick(%d, "+f.source(s.X)+"."+other+", ", ")", other)
}

// dropError returns no error where there is one.
func (f *finder) dropError(c *astutil.Cursor, n *ast.ReturnStmt) {
	if len(n.Results) == 0 || c.Index() < 0 {
		return
	}
	last := n.Results[len(n.Results)-1]
	if t := f.info.TypeOf(last); t == nil || t.String() != "error" || f.source(last) == "nil" {
		return
	}
	values := []string{}
	for _, r := range n.Results[:len(n.Results)-1] {
		values = append(values, f.source(r))
	}
	values = append(values, "nil")
	f.add(n, "no-error", "if mutantOn(%d) {\nreturn "+strings.Join(values, ", ")+"\n}\n", "", "no error")
}

// dropCall leaves a call out that is made for its effect. Logs, and faults that tests inject, have none.
func (f *finder) dropCall(c *astutil.Cursor, n *ast.ExprStmt) bool {
	text := f.source(n)
	for _, harmless := range []string{"panic(", "fault.", "log()", ".Log.", "close(", "<-"} {
		if strings.Contains(text, harmless) {
			return false
		}
	}
	if c.Index() >= 0 {
		f.add(n, "no-call", "if !mutantOn(%d) {\n", "\n}", "left out")
	}
	return true
}

// literal moves an integer by one, where it is not part of a greater constant.
func (f *finder) literal(c *astutil.Cursor, n *ast.BasicLit) {
	basic, ok := f.info.TypeOf(n).(*types.Basic)
	if n.Kind != token.INT || !ok || basic.Info()&types.IsUntyped != 0 || basic.Info()&types.IsInteger == 0 {
		return
	}
	switch parent := c.Parent().(type) {
	case *ast.CaseClause, *ast.ValueSpec:
		return
	case ast.Expr:
		if f.info.Types[parent].Value != nil {
			return
		}
	}
	f.add(n, "constant", "mutantPlus(%d, "+basic.Name()+"(", "))", "one more")
}
