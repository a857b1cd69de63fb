package proxying

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/pool"
	"github.com/gpupay/gpupay/sdk/proxy"
	"github.com/gpupay/gpupay/sdk/units"
)

// Keys are the local keys of a proxy, which may run meanwhile.
func Keys(dir string) (*proxy.Keys, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--dir: %w", err)
	}
	return proxy.OpenKeys(KeysFile(dir), nil)
}

// AddKey makes a key, and prints its secret; what else its owner has to know, and no script, goes into notes.
func AddKey(out, notes io.Writer, keys *proxy.Keys, name, budget string, models []string) error {
	budget = strings.TrimSuffix(budget, "/day")
	if _, err := units.Parse(cmp.Or(budget, "0"), 6); err != nil {
		return fmt.Errorf("--budget %.40q is not an amount of dollars a day, such as 5/day", budget)
	}
	first := !keys.Needed()
	secret, err := keys.Add(name, budget, models)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, secret)
	if first {
		fmt.Fprintln(notes, "From now on every program that asks this proxy needs a key, also one that needed none until now: give each its own as OPENAI_API_KEY.")
	}
	return nil
}

// SayUnserved says which models nobody in the list of providers serves: a key for them alone is refused everything else, and they are not found.
func SayUnserved(ctx context.Context, notes io.Writer, providers string, models []string) {
	if providers == "" || len(models) == 0 {
		return
	}
	list, err := source(providers).Candidates(ctx)
	if err != nil {
		fmt.Fprintf(notes, "--providers: whether anybody serves these models is not known: %v\n", err)
		return
	}
	for _, model := range models {
		if !slices.ContainsFunc(list, func(c pool.Candidate) bool { return c.Model == model }) {
			fmt.Fprintf(notes, "--models: no provider in %s serves %q now: its name there is as the list has it\n", redact.Database(providers), model)
		}
	}
}

// List prints the keys, without their secrets, which nobody has.
func List(out io.Writer, keys *proxy.Keys) error {
	all, err := keys.List()
	if err != nil {
		return err
	}
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "name\ta day\tmodels\n")
	for _, key := range all {
		daily := "all together's"
		if key.Budget != "" {
			daily = "$" + key.Budget
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", key.Name, daily, cmp.Or(strings.Join(key.Models, ", "), "all"))
	}
	return t.Flush()
}
