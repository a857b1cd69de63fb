package main

import (
	"context"
	"fmt"
	"runtime"
	"runtime/debug"

	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
)

func versionCommand(app *cli.App) *urfave.Command {
	return app.Flags("version", "version").Command("says which version this is", "", func(context.Context, []string) error {
		version, revision := "(unknown)", ""
		if build, ok := debug.ReadBuildInfo(); ok {
			version = build.Main.Version
			for _, s := range build.Settings {
				if s.Key == "vcs.revision" {
					revision = " " + s.Value
				}
			}
		}
		fmt.Printf("gpupay %s%s (%s, %s/%s)\n", version, revision, runtime.Version(), runtime.GOOS, runtime.GOARCH)
		return nil
	})
}
