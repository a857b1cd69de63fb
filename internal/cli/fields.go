package cli

import (
	"regexp"
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v3"
)

// Fields are the flags that set the fields of a configuration, by the name that the configuration's own errors have for a field.
type Fields map[string]string

// words are an error's words, what is quoted in one piece: that is the user's, or a stranger's, and no field.
var words = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[A-Za-z][\w-]*(?:\.\w+)*`)

// named is an error in terms of flags.
type named struct {
	error
	text string
}

func (n named) Error() string { return n.text }
func (n named) Unwrap() error { return n.error }

// Named puts the flags and environment variables that a user typed where an error says which fields of the configuration are wrong. A
// field whose name has no dot is looked for only in an error of the configuration itself, which begins with the program's name.
func (f *Flags) Named(err error, fields Fields) error {
	if err == nil {
		return nil
	}
	own := strings.HasPrefix(err.Error(), f.program+": ")
	text := words.ReplaceAllStringFunc(err.Error(), func(word string) string {
		if name, ok := fields[word]; ok && (own || strings.Contains(word, ".")) {
			return f.say(name)
		}
		return word
	})
	if text == err.Error() {
		return err
	}
	for _, name := range []string{"escrow", "token"} {
		if strings.Contains(text, "--"+name+" ") && strings.Contains(text, " is empty") {
			text += " (on a chain that devchain runs: `. ./devchain.env` says it)"
		}
	}
	return named{error: err, text: text}
}

// say is a flag as a user types it, with the environment variable of a text.
func (f *Flags) say(name string) string {
	if f.said[name] {
		return "--" + name + " ($" + variable(name) + ")"
	}
	return "--" + name
}

// Has reports whether there is a flag of a name.
func (f *Flags) Has(name string) bool {
	return slices.ContainsFunc(f.list, func(flag urfave.Flag) bool { return slices.Contains(flag.Names(), name) })
}

// Given reports whether one of the flags has a value of the command line, the environment or the file, and not its default.
func (f *Flags) Given(names ...string) bool {
	return slices.ContainsFunc(f.list, func(flag urfave.Flag) bool { return flag.IsSet() && slices.Contains(names, flag.Names()[0]) })
}
