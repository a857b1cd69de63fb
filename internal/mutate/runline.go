package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// A runLine is a command that runs tests: "go test" or "forge test" with flags that this program knows.
type runLine struct {
	text     string
	tool     string   // go or forge
	dir      string   // of go's -C, else "."
	build    []string // of go: flags that change what is compiled
	flags    []string
	folder   string   // of go: the package of the tests, from dir
	match    string   // go's -run, forge's --match-test: which tests
	contract string   // forge's --match-contract
	args     []string // after -args
}

// plain tells whether a line compiles what everybody compiles, with or without the race detector.
func (r runLine) plain() bool {
	return !slices.ContainsFunc(r.build, func(flag string) bool { return strings.HasPrefix(flag, "-tags") })
}

// timeout ends a mutant that hangs, where its line names no time of its own.
const timeout = "2m"

func parseRun(text string) (runLine, error) {
	words, err := splitWords(text)
	if err != nil {
		return runLine{}, fmt.Errorf("run line %q: %w", text, err)
	}
	r := runLine{text: text, dir: "."}
	switch {
	case len(words) > 2 && words[0] == "go" && words[1] == "test":
		r.tool, err = "go", r.goFlags(words[2:])
	case len(words) > 2 && words[0] == "forge" && words[1] == "test":
		r.tool, err = "forge", r.forgeFlags(words[2:])
	default:
		err = errors.New("neither go test nor forge test")
	}
	if err == nil && r.match == "" {
		err = errors.New("it does not say which tests: -run, or --match-test")
	}
	if err != nil {
		return runLine{}, fmt.Errorf("run line %q: %w", text, err)
	}
	return r, nil
}

var (
	goValued  = map[string]bool{"run": true, "skip": true, "count": true, "timeout": true, "tags": true, "cpu": true, "parallel": true, "C": true}
	goPlain   = map[string]bool{"short": true, "failfast": true}
	forgeKnow = map[string]bool{"match-test": true, "match-contract": true}
)

func (r *runLine) goFlags(words []string) error {
	timed := false
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		if word == "-args" {
			r.args = words
			break
		}
		if !strings.HasPrefix(word, "-") {
			if r.folder != "" {
				return errors.New("it names two packages: the second needs a line of its own, also")
			}
			r.folder = filepath.Clean(word)
			continue
		}
		name, value, inline := strings.Cut(strings.TrimLeft(word, "-"), "=")
		switch {
		case name == "race" && !inline:
			r.build = append(r.build, "-race")
			continue
		case goPlain[name] && !inline:
			r.flags = append(r.flags, "-"+name)
			continue
		case !goValued[name]:
			return fmt.Errorf("the flag %s is not known here", word)
		case !inline && len(words) == 0:
			return fmt.Errorf("the flag %s has no value", word)
		case !inline:
			value, words = words[0], words[1:]
		}
		switch name {
		case "C":
			r.dir = value
			continue
		case "tags":
			r.build = append(r.build, "-tags="+value)
			continue
		case "run":
			r.match = value
		}
		r.flags = append(r.flags, "-"+name+"="+value)
		timed = timed || name == "timeout"
	}
	if !timed {
		r.flags = append(r.flags, "-timeout="+timeout)
	}
	if r.folder == "" {
		r.folder = "."
	}
	for _, p := range []string{r.folder, r.dir} {
		if !filepath.IsLocal(p) || strings.Contains(p, "...") {
			return fmt.Errorf("%q is no folder of the repository: name the package of the test", p)
		}
	}
	return nil
}

func (r *runLine) forgeFlags(words []string) error {
	for ; len(words) > 0; words = words[1:] {
		name, value, inline := strings.Cut(strings.TrimLeft(words[0], "-"), "=")
		switch {
		case !strings.HasPrefix(words[0], "--") || !forgeKnow[name]:
			return fmt.Errorf("%s is not known here", words[0])
		case !inline && len(words) == 1:
			return fmt.Errorf("the flag %s has no value", words[0])
		case !inline:
			words = words[1:]
			value = words[0]
		}
		if name == "match-test" {
			r.match = value
		} else {
			r.contract = value
		}
		r.flags = append(r.flags, "--"+name, value)
	}
	return nil
}

// splitWords splits as a shell does that knows spaces and both quotes, and nothing else.
func splitWords(text string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	begun := false
	for _, c := range text {
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, begun = c, true
		case quote == 0 && c == ' ':
			if begun {
				words = append(words, word.String())
			}
			word.Reset()
			begun = false
		default:
			word.WriteRune(c)
			begun = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote has no end")
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}

var (
	goTest    = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)
	solidTest = regexp.MustCompile(`(?m)^\s*function ((?:test|invariant)\w*)\(`)
)

// exists tells whether a run line names a test that is there, by the text of the sources and so in no time.
func (r runLine) exists(root string) error {
	suffix, find, match := "_test.go", goTest, strings.Split(r.match, "/")[0]
	folders := []string{filepath.Join(root, r.dir, r.folder, "*"+suffix)}
	if r.tool == "forge" {
		suffix, find, match = ".sol", solidTest, r.match
		folders = []string{filepath.Join(root, "contracts/test/*"+suffix), filepath.Join(root, "contracts/test/*/*"+suffix)}
	}
	wanted, err := regexp.Compile(match)
	if err != nil {
		return err
	}
	for _, folder := range folders {
		files, err := filepath.Glob(folder)
		if err != nil {
			return err
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for _, name := range find.FindAllSubmatch(text, -1) {
				if wanted.Match(name[1]) {
					return nil
				}
			}
		}
	}
	return fmt.Errorf("%q: there is no such test", r.text)
}
