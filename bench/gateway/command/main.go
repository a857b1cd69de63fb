// Command gateway is the process that is measured: an sdk.Provider that takes its leases up and serves.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/gpupay/gpupay/bench/gateway"
)

func main() {
	if err := gateway.Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}
