// Command gpupay rents out GPUs and rents them: each of its subcommands is flags, a configuration and one call into a
// package. Run it with --help.
package main

import (
	"context"
	"os"

	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
)

// about is what --help begins with.
const about = `A provider of GPUs is paid second by second by renters it does not know: 'serve' meters and settles, 'rent' checks
every record and pays. Try both on a chain of your own: docs/two-programs.md has every command in order.

Each flag has an environment variable, GPUPAY_ and its name, and a key in the configuration file, its name. The
command line stands over the environment, and that over the file. $GPUPAY_KEY, which holds the key as hex, has no
flag, and the file cannot hold it: command lines are public, and files are copied.

Exit status: 0 done, 1 failed, 64 wrong usage; of 'verify' also 2, where there is no verdict.`

func main() {
	cli.Main(func(ctx context.Context) error { return run(ctx, os.Args[1:]) })
}

func run(ctx context.Context, args []string) error {
	if len(args) == 1 && args[0] == "--version" { // as most programs have it
		args = []string{"version"}
	}
	app := new(cli.App)
	return app.Run(ctx, append([]string{"gpupay"}, args...), "gpupay", "GPU time, metered and paid for by the second", about, commands(app)...)
}

func commands(app *cli.App) []*urfave.Command {
	return []*urfave.Command{
		newServe(app).command(), newRent(app).command(), newProxy(app).command(app), budgetCommand(app), newNode(app).command(), newTower(app).command(),
		newAccounts(app).command(), newCheckup(app).command(), newKeys(app).command(),
		newDeploy(app).command(), newTrace(app).command(), newVerify(app).command(), versionCommand(app),
	}
}
