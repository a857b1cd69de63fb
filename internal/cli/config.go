package cli

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
	urfave "github.com/urfave/cli/v3"
)

// kind is what a value may be in a configuration file.
type kind int

const (
	text   kind = iota // text in quotes, or a list of it: amounts too, which are no floating-point numbers
	path               // text that is relative to the file
	number             // a number, or true or false
)

// file is a configuration file. Its keys are the names of flags: at the top those of any subcommand, in a table those of
// the subcommand of that name.
type file struct {
	path string
	read bool
	all  map[string]any
	err  error // the first one, which check returns
}

// load reads the file once.
func (f *file) load() map[string]any {
	if f.read || f.path == "" {
		return f.all
	}
	f.read = true
	if _, err := toml.DecodeFile(f.path, &f.all); err != nil {
		f.fail(err)
	}
	return f.all
}

func (f *file) fail(err error) {
	if f.err == nil {
		f.err = fmt.Errorf("--config %s: %w", f.path, err)
	}
}

// fromFile is one flag's value in the file. It implements the library's ValueSource.
type fromFile struct {
	file       *file
	table, key string
	kind       kind
}

// Lookup returns what the subcommand's table says, or else the top.
func (s *fromFile) Lookup() (string, bool) {
	all := s.file.load()
	value, ok := all[s.key]
	if table, is := all[s.table].(map[string]any); is {
		if own, has := table[s.key]; has {
			value, ok = own, true
		}
	}
	if _, table := value.(map[string]any); !ok || table {
		return "", false
	}
	said, err := s.text(value)
	if err != nil {
		s.file.fail(fmt.Errorf("%s: %w", s.key, err))
	}
	return said, err == nil
}

// text is a value as a command line would have it.
func (s *fromFile) text(value any) (string, error) {
	switch v := value.(type) {
	case string:
		if s.kind == path && v != "" && !strings.Contains(v, "://") && !filepath.IsAbs(v) {
			return filepath.Join(filepath.Dir(s.file.path), v), nil
		}
		return v, nil
	case []any:
		items := make([]string, len(v))
		for i := range v {
			var ok bool
			if items[i], ok = v[i].(string); !ok || s.kind != text {
				return "", errors.New("it takes no such list")
			}
		}
		return strings.Join(items, ","), nil
	case int64, float64, bool:
		if s.kind == number {
			return fmt.Sprint(v), nil
		}
		return "", fmt.Errorf("write it in quotes, as in %s = %s", s.key, strconv.Quote(fmt.Sprint(v)))
	}
	return "", errors.New("it takes no such value")
}

// String says where a value is from.
func (s *fromFile) String() string { return s.file.path }

// GoString is String.
func (s *fromFile) GoString() string { return s.String() }

// check returns what is wrong with the file: also what no flag of root's subcommands is called.
func (f *file) check(root *urfave.Command) error {
	all := f.load()
	if f.err != nil || f.path == "" {
		return f.err
	}
	tables, every := map[string][]string{}, []string(nil)
	for _, c := range root.Commands {
		for _, flag := range c.Flags {
			if s, ok := flag.(urfave.DocGenerationFlag); ok && len(s.GetEnvVars()) > 0 { // no single action
				tables[c.Name] = append(tables[c.Name], flag.Names()...)
			}
		}
		every = append(every, tables[c.Name]...)
	}
	for _, key := range slices.Sorted(maps.Keys(all)) {
		table, is := all[key].(map[string]any)
		if !is {
			f.known(key, "", every)
			continue
		}
		if _, command := tables[key]; !command {
			f.fail(fmt.Errorf("[%s]: there is no such command", key))
		}
		for _, name := range slices.Sorted(maps.Keys(table)) {
			f.known(name, key+".", tables[key])
		}
	}
	if exposed(f.path, all) {
		fmt.Fprintf(os.Stderr, "warning: --config %s holds a URL with a password, and others than its owner can read it: chmod 600\n", f.path)
	}
	return f.err
}

// known refuses a key that is no flag's name.
func (f *file) known(key, table string, flags []string) {
	lower := strings.ToLower(key)
	switch {
	case slices.Contains(flags, key):
	case slices.ContainsFunc([]string{"key", "secret", "passphrase", "password", "mnemonic"}, func(word string) bool { return strings.Contains(lower, word) }):
		f.fail(fmt.Errorf("%s%s: %w", table, key, errSecret))
	default:
		f.fail(fmt.Errorf("%s%s: no flag has this name (keys are the flags that --help lists, without --)", table, key))
	}
}

// exposed reports whether others than the owner can read a password, which stands in the URL of a database or an endpoint.
func exposed(path string, all map[string]any) bool {
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm()&0o077 == 0 {
		return false
	}
	_, after, found := strings.Cut(fmt.Sprint(all), "://")
	return found && strings.Contains(after, "@")
}
