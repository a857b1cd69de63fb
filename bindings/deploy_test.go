package bindings_test

import (
	"math/big"
	"os"
	"os/exec"
	"testing"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/bindings"
)

// deployer is the deterministic deployment contract that public chains have at one address.
var deployer = common.HexToAddress("0x4e59b44847b379578588920cA78FbF26c0B4956C")

// TestDeployScript runs the forge script against a chain, and holds the address that it deploys to against the one that
// the bindings' own creation code gives: both carry the same bytes, and a Go program can tell where the escrow is.
func TestDeployScript(t *testing.T) {
	const forge = "../node_modules/.bin/forge"
	if _, err := os.Stat(forge); err != nil {
		t.Skip("no forge in node_modules: run `npm ci` to check the deploy script")
	}
	c := startChain(t)
	key := c.account()
	args := append(common.FromHex(bindings.ChannelEscrowMetaData.Bin), escrowABI.PackConstructor(big.NewInt(7200))...)
	want := crypto.CreateAddress2(deployer, common.Hash{}, crypto.Keccak256(args))

	var deployed uint64
	for range 2 {
		cmd := exec.Command("node_modules/.bin/forge", "script", "contracts/script/Deploy.s.sol", "--rpc-url", c.url,
			"--broadcast", "--private-key", hexutil.Encode(crypto.FromECDSA(key)))
		cmd.Dir = ".."
		cmd.Env = append(os.Environ(), "GRACE_PERIOD=7200")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("forge script: %v\n%s", err, out)
		}
		nonce, err := c.NonceAt(t.Context(), address(key), nil)
		if err != nil {
			t.Fatal(err)
		}
		if deployed++; nonce != 1 {
			t.Fatalf("after %d runs the deployer sent %d transactions, want 1: a second run must change nothing", deployed, nonce)
		}
	}
	out, err := c.CallContract(t.Context(), ethereum.CallMsg{To: &want, Data: escrowABI.PackGracePeriod()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if grace, err := escrowABI.UnpackGracePeriod(out); err != nil || grace.Int64() != 7200 {
		t.Fatalf("grace period at %s is %v (%v), want 7200", want, grace, err)
	}
}
