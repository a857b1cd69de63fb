// Command gateway is the process that the section leases measures: an sdk.Provider that takes its leases up and serves.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/gpupay/gpupay/internal/bench/leases"
)

func main() {
	if err := leases.Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}
