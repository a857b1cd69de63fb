package bindings_test

import (
	"os"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/bindings"
)

// TestEveryFunctionIsDocumented: docs/contracts.md says of each function of the escrow what it is for.
func TestEveryFunctionIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/contracts.md")
	if err != nil {
		t.Fatal(err)
	}
	abi, err := bindings.ChannelEscrowMetaData.ParseABI()
	if err != nil {
		t.Fatal(err)
	}
	for name := range abi.Methods {
		if name != "eip712Domain" && !strings.Contains(string(page), "**"+name+"**") {
			t.Errorf("%s is not there", name)
		}
	}
}
