package bindings_test

import (
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
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
	// The binary itself: the script that npm puts before it exits 0 whatever happens.
	found, err := filepath.Glob("../node_modules/@foundry-rs/forge-*/bin/forge")
	if err != nil || len(found) == 0 {
		t.Fatal("no forge in node_modules: run `npm ci` first")
	}
	forge, err := filepath.Abs(found[0])
	if err != nil {
		t.Fatal(err)
	}
	c := startChain(t)
	key := c.account()
	args := append(common.FromHex(bindings.ChannelEscrowMetaData.Bin), escrowABI.PackConstructor(big.NewInt(7200))...)
	want := crypto.CreateAddress2(deployer, common.Hash{}, crypto.Keccak256(args))

	var deployed uint64
	for range 2 {
		cmd := exec.Command(forge, "script", "contracts/script/Deploy.s.sol", "--rpc-url", c.url,
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
