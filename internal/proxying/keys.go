package proxying

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

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

// AddKey makes a key, and prints its secret.
func AddKey(out io.Writer, keys *proxy.Keys, name, budget string, models []string) error {
	budget = strings.TrimSuffix(budget, "/day")
	if _, err := units.Parse(cmp.Or(budget, "0"), 6); err != nil {
		return fmt.Errorf("--budget %.40q is not an amount of dollars a day, such as 5/day", budget)
	}
	secret, err := keys.Add(name, budget, models)
	if err == nil {
		fmt.Fprintln(out, secret)
	}
	return err
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
