package merkle_test

import (
	"fmt"

	"github.com/gpupay/gpupay/metering/merkle"
)

// Of three samples that a root commits to, one is shown without the others.
func Example() {
	samples := [][]byte{[]byte("busy"), []byte("idle"), []byte("busy again")}
	root := merkle.Root(samples)

	proof, err := merkle.Prove(samples, 1)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(proof.Verify(root, 3))

	proof.Sample = []byte("busy")
	fmt.Println(proof.Verify(root, 3) != nil)
	// Output:
	// <nil>
	// true
}
