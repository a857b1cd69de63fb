// Command device stands for the devices of the nemesis's fleet: what the hooks of
// gateways and nodes run. Its arguments are a folder and what is to be done.
package main

import (
	"fmt"
	"os"

	"github.com/gpupay/gpupay/internal/nemesis"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "device FOLDER VERB")
		os.Exit(2)
	}
	if err := nemesis.Command(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
