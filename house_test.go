// Package mote_test holds the rules of the house: what every package of this repository keeps to,
// whoever writes it. A rule that fails names what to do instead.
package mote_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

const module = "github.com/mote-k8s/mote/"

// parts are the top-level packages. Nothing but cmd may import two of them.
func parts() []string {
	return []string{"server", "agent", "datastore", "addons", "airgap", "sandbox"}
}

// ban forbids the files below dir to import what begins with path, except from the directories in
// except. "" is the whole repository.
type ban struct {
	dir, path, why string
	except         []string
}

func bans() []ban {
	list := []ban{
		{
			dir: "", path: "k8s.io/kubernetes",
			except: []string{"server", "agent", "test"},
			why:    "only server and agent embed upstream's components, one file for each; give others plain values",
		},
		{
			dir: "datastore", path: "k8s.io/",
			why: "the datastore speaks etcd's protocol and must not know what is stored in it",
		},
		{
			dir: "", path: module + "cmd",
			except: []string{"cmd"},
			why:    "cmd is the command line; nothing stands on it",
		},
		{
			dir: "", path: module + "machine",
			except: []string{"cmd", "machine"},
			why:    "machine puts the parts together; a part that needs a setting takes it in its Config",
		},
		{
			dir: "", path: "github.com/spf13",
			except: []string{"cmd", "machine/settings", "server", "agent", "test"},
			why:    "flags are read in cmd from one table; server and agent parse upstream's own",
		},
		{
			dir: "", path: "io/ioutil", why: "use os and io",
		},
		{
			dir: "", path: "log",
			except: []string{"internal/logging"},
			why:    "use log/slog with a component key: package log knows neither level nor keys",
		},
	}
	for _, part := range parts() {
		list = append(list, ban{
			dir: "internal", path: module + part,
			why: "internal is what all packages stand on; it cannot stand on one of them",
		}, ban{
			dir: "test", path: module + part,
			why: "what lies below test drives the real file as its users do; a test of one package lies beside its code",
		})
		for _, other := range parts() {
			if other != part {
				list = append(list, ban{
					dir: part, path: module + other,
					why: "siblings do not import siblings; cmd hands plain values across (docs/architecture.md, \"Packages\")",
				})
			}
		}
	}
	return list
}

func (b ban) hits(file source, path string) bool {
	if !within(file.dir, b.dir) || slices.ContainsFunc(b.except, func(dir string) bool { return within(file.dir, dir) }) {
		return false
	}
	// The standard library's log is not log/slog.
	return path == b.path || b.path != "log" && strings.HasPrefix(path, strings.TrimSuffix(b.path, "/")+"/")
}

func within(dir, top string) bool {
	return top == "" || dir == top || strings.HasPrefix(dir, top+"/")
}

// source is one Go file of this module.
type source struct {
	path, dir string
	test      bool
	ast       *ast.File
}

// sources parses every Go file of this module. Nested modules have rules of their own.
func sources(t *testing.T, fset *token.FileSet) []source {
	t.Helper()
	var out []source
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name != "." && strings.HasPrefix(name, ".") || name == "testdata" || name == "bin" {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != "." {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		dir := filepath.ToSlash(filepath.Dir(path))
		out = append(out, source{path, dir, strings.HasSuffix(path, "_test.go"), file})
		return nil
	})
	require.NoError(t, err)
	require.NotEmpty(t, out)
	return out
}

func TestImportsGoOneWay(t *testing.T) {
	for _, file := range sources(t, token.NewFileSet()) {
		for _, spec := range file.ast.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			require.NoError(t, err)
			for _, b := range bans() {
				if b.hits(file, path) {
					t.Errorf("%s imports %s: %s", file.path, path, b.why)
				}
			}
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	said := make(map[string]bool)
	names := make(map[string]string)
	for _, file := range sources(t, token.NewFileSet()) {
		if file.test {
			continue
		}
		names[file.dir] = file.ast.Name.Name
		if file.ast.Doc != nil && len(strings.TrimSpace(file.ast.Doc.Text())) > 40 {
			said[file.dir] = true
		}
	}
	for dir, name := range names {
		if !said[dir] {
			t.Errorf("package %s (%s) has no package comment: say what it owns, what it leaves to others and how to enter it", name, dir)
		}
	}
}

// TestOnlyMainEndsTheProcess: what ends the process elsewhere leaves deferred work undone, and no
// caller can decide otherwise.
func TestOnlyMainEndsTheProcess(t *testing.T) {
	ends := map[string][]string{
		"os":     {"Exit"},
		"log":    {"Fatal", "Fatalf", "Fatalln", "Panic", "Panicf"},
		"klog":   {"Fatal", "Fatalf", "Exit", "Exitf"},
		"logrus": {"Fatal", "Fatalf", "Exit", "Panic"},
	}
	fset := token.NewFileSet()
	for _, file := range sources(t, fset) {
		if file.test || within(file.dir, "test") {
			continue
		}
		for _, decl := range file.ast.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if ok && fn.Name.Name == "main" && file.ast.Name.Name == "main" {
				continue
			}
			ast.Inspect(decl, func(n ast.Node) bool {
				if sel, ok := n.(*ast.SelectorExpr); ok {
					if pkg, ok := sel.X.(*ast.Ident); ok && slices.Contains(ends[pkg.Name], sel.Sel.Name) {
						t.Errorf("%s: %s.%s outside main: return an error; main prints it and picks the exit code",
							fset.Position(n.Pos()), pkg.Name, sel.Sel.Name)
					}
				}
				return true
			})
		}
	}
}

// TestNoMutablePackageVariables: state belongs to a value that somebody owns. What is never written
// is fine: errors to compare with, compiled patterns, tables of fixed size, moments, embedded
// files, interface checks, and what the linker stamps.
func TestNoMutablePackageVariables(t *testing.T) {
	fset := token.NewFileSet()
	for _, file := range sources(t, fset) {
		if file.test || within(file.dir, "test") {
			continue
		}
		for _, decl := range file.ast.Decls {
			gen, ok := decl.(*ast.GenDecl)
			if !ok || gen.Tok != token.VAR {
				continue
			}
			for _, spec := range gen.Specs {
				v := spec.(*ast.ValueSpec)
				if !constant(gen, v) && file.dir != "internal/version" {
					t.Errorf("%s: package variable %s: use a constant, a function that returns the value, or a field of what owns it",
						fset.Position(v.Pos()), v.Names[0].Name)
				}
			}
		}
	}
}

func constant(gen *ast.GenDecl, v *ast.ValueSpec) bool {
	for _, doc := range []*ast.CommentGroup{gen.Doc, v.Doc} {
		if doc != nil && slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed") }) {
			return true
		}
	}
	if v.Names[0].Name == "_" {
		return true
	}
	if len(v.Values) != 1 {
		return false
	}
	if lit, ok := v.Values[0].(*ast.CompositeLit); ok {
		array, ok := lit.Type.(*ast.ArrayType)
		return ok && array.Len != nil // [...]T{...}: a table, which cannot grow
	}
	// time.Unix(0, 0).UTC() is judged by its first call.
	expr := v.Values[0]
	for {
		call, ok := expr.(*ast.CallExpr)
		if !ok {
			return false
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		if pkg, ok := sel.X.(*ast.Ident); ok {
			return slices.Contains([]string{
				"errors.New", "fmt.Errorf", "regexp.MustCompile", "strings.NewReplacer", "time.Date", "time.Unix",
			}, pkg.Name+"."+sel.Sel.Name)
		}
		expr = sel.X
	}
}

// TestErrorsSayWhatHappened: an error that begins "failed to" says nothing that its being an error
// does not.
func TestErrorsSayWhatHappened(t *testing.T) {
	fset := token.NewFileSet()
	failed := regexp.MustCompile(`(?i)^(failed|unable) to |^error `)
	for _, file := range sources(t, fset) {
		ast.Inspect(file.ast, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "Errorf" && sel.Sel.Name != "New" {
				return true
			}
			pkg, ok := sel.X.(*ast.Ident)
			if !ok || pkg.Name != "fmt" && pkg.Name != "errors" {
				return true
			}
			if lit, ok := call.Args[0].(*ast.BasicLit); ok && failed.MatchString(strings.Trim(lit.Value, "\"`")) {
				t.Errorf("%s: %s: name the operation and its object (\"open datastore %%s: %%w\"), or what cannot be done (\"cannot listen on ...\")",
					fset.Position(n.Pos()), lit.Value)
			}
			return true
		})
	}
}

// TestPathsComeFromTheLayout keeps the names of mote's files in one place: a copy of a name
// elsewhere goes stale, and "mote reset" then leaves the file behind.
func TestPathsComeFromTheLayout(t *testing.T) {
	fset := token.NewFileSet()
	names := regexp.MustCompile(`^"(state\.db|mote\.sock|datastore\.sock|containerd\.sock|images\.sock|restore\.new|replaced-|reset\.json|/var/lib/mote|/run/mote)(/.*)?"$`)
	for _, file := range sources(t, fset) {
		if file.test || within(file.dir, "internal/layout") || within(file.dir, "test") || within(file.dir, "datastore/testdata") {
			continue
		}
		ast.Inspect(file.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.BasicLit:
				if names.MatchString(n.Value) {
					t.Errorf("%s: %s: take the path from internal/layout", fset.Position(n.Pos()), n.Value)
				}
			case *ast.CallExpr:
				if joinsRoot(n) {
					t.Errorf("%s: a path below the data, run or kubelet directory: give it a method in internal/layout", fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

// joinsRoot reports whether call is filepath.Join(x.DataDir, "name") or the same of the run
// directory.
func joinsRoot(call *ast.CallExpr) bool {
	join, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || join.Sel.Name != "Join" || len(call.Args) < 2 {
		return false
	}
	root, ok := call.Args[0].(*ast.SelectorExpr)
	_, literal := call.Args[1].(*ast.BasicLit)
	return ok && literal && slices.Contains([]string{"DataDir", "RunDir"}, root.Sel.Name)
}

// TestFilesFitInAHead is the tail that makes a code base hard: docs and tests may be long, code
// not.
func TestFilesFitInAHead(t *testing.T) {
	const longest, longestFunction = 450, 100
	fset := token.NewFileSet()
	for _, file := range sources(t, fset) {
		if lines := fset.File(file.ast.Pos()).LineCount(); lines > longest && !file.test {
			t.Errorf("%s has %d lines: split it by what it is about (at most %d)", file.path, lines, longest)
		}
		for _, decl := range file.ast.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || file.test || fn.Name.Name == "Table" {
				continue
			}
			if lines := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line; lines > longestFunction {
				t.Errorf("%s: %s has %d lines: give its steps names (at most %d)", file.path, fn.Name.Name, lines, longestFunction)
			}
		}
	}
}

// TestCommentsAreWrapped keeps comments within 100 columns, so that two files fit beside each
// other. A tab counts as four. Directives, single long URLs and preformatted lines, which begin
// with a tab, are exempt.
func TestCommentsAreWrapped(t *testing.T) {
	const widest = 100
	exempt := regexp.MustCompile(`^//(go:|lint:|\t| ?https?://\S+$)`)
	for _, file := range sources(t, token.NewFileSet()) {
		text, err := os.ReadFile(file.path)
		require.NoError(t, err)
		for i, line := range strings.Split(string(text), "\n") {
			comment := strings.TrimLeft(line, "\t")
			if !strings.HasPrefix(comment, "//") || exempt.MatchString(comment) {
				continue
			}
			if columns := utf8.RuneCountInString(strings.ReplaceAll(line, "\t", "    ")); columns > widest {
				t.Errorf("%s:%d: a comment of %d columns: wrap the paragraph at %d", file.path, i+1, columns, widest)
			}
		}
	}
}

// TestCommentsNameThings bans openings that describe a thing by a question or by a word of our own
// instead of the field's noun (docs/contributing/style.md).
func TestCommentsNameThings(t *testing.T) {
	fset := token.NewFileSet()
	banned := regexp.MustCompile(`^// ?[\w.]+ ((is|are) (what|who|how|where|whether|which)|tells|judges)\b`)
	for _, file := range sources(t, fset) {
		for _, group := range file.ast.Comments {
			if first := group.List[0]; banned.MatchString(first.Text) {
				t.Errorf("%s: %q: begin with the name and a verb: \"returns\", \"reports whether\", \"is the number of\"",
					fset.Position(first.Pos()), first.Text)
			}
		}
	}
}

// TestPackagesFitInAHead keeps packages small enough to know: at most 25 files and 40 exported
// names. An exception names its reason.
func TestPackagesFitInAHead(t *testing.T) {
	const mostFiles, mostNames = 25, 40
	exceptions := map[string]string{
		"agent":      "images are going to be a package of their own",
		"cmd/mote":   "one file for each verb",
		"test/bench": "one file for each thing that is measured",
	}
	files, names := map[string]int{}, map[string]int{}
	for _, file := range sources(t, token.NewFileSet()) {
		if file.test {
			continue
		}
		files[file.dir]++
		for _, decl := range file.ast.Decls {
			names[file.dir] += exported(decl)
		}
	}
	for dir, count := range files {
		if exceptions[dir] != "" {
			continue
		}
		if count > mostFiles {
			t.Errorf("%s has %d files (at most %d): split it by what it is about", dir, count, mostFiles)
		}
		if names[dir] > mostNames {
			t.Errorf("%s exports %d names (at most %d): export what another package uses today", dir, names[dir], mostNames)
		}
	}
}

// exported counts the exported names that a declaration adds to its package. Methods belong to
// their type.
func exported(decl ast.Decl) (count int) {
	switch decl := decl.(type) {
	case *ast.FuncDecl:
		if decl.Recv == nil && decl.Name.IsExported() {
			count++
		}
	case *ast.GenDecl:
		for _, spec := range decl.Specs {
			switch spec := spec.(type) {
			case *ast.TypeSpec:
				if spec.Name.IsExported() {
					count++
				}
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					if name.IsExported() {
						count++
					}
				}
			}
		}
	}
	return count
}
