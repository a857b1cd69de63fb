package eip712_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/big"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/math"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/signer/core/apitypes"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
)

// sample is a struct with a member of every kind that Words lays out.
var sample = apitypes.Types{
	"EIP712Domain": {
		{Name: "name", Type: "string"}, {Name: "version", Type: "string"},
		{Name: "chainId", Type: "uint256"}, {Name: "verifyingContract", Type: "address"},
	},
	"Sample": {
		{Name: "id", Type: "bytes32"}, {Name: "who", Type: "address"},
		{Name: "small", Type: "uint64"}, {Name: "large", Type: "uint256"}, {Name: "flag", Type: "bool"},
	},
}

func FuzzDigestEqualsApitypes(f *testing.F) {
	f.Add("EVM Payment Channel", "1", uint64(31337), []byte{1}, []byte{2}, uint64(3), []byte{4}, true)
	f.Add("", "", uint64(0), []byte{}, []byte{}, uint64(0), []byte{}, false)
	f.Fuzz(func(t *testing.T, name, version string, chain uint64, id, who []byte, small uint64, large []byte, flag bool) {
		hash, address := common.BytesToHash(id), common.BytesToAddress(who)
		amount := new(uint256.Int).SetBytes32(common.LeftPadBytes(trim(large), 32))
		typed := apitypes.TypedData{
			Types: sample, PrimaryType: "Sample",
			Domain: apitypes.TypedDataDomain{Name: name, Version: version,
				ChainId: (*math.HexOrDecimal256)(new(big.Int).SetUint64(chain)), VerifyingContract: address.Hex()},
			Message: apitypes.TypedDataMessage{"id": hash[:], "who": address.Hex(),
				"small": fmt.Sprint(small), "large": amount.Dec(), "flag": flag},
		}
		want, _, err := apitypes.TypedDataAndHash(typed)
		if err != nil {
			t.Skip(err) // apitypes refuses an empty domain
		}
		var buf [6 * 32]byte
		row := eip712.Words(buf[:0]).
			Hash(eip712.TypeHash("Sample(bytes32 id,address who,uint64 small,uint256 large,bool flag)")).
			Hash(hash).Address(address).Uint64(small).Uint256(amount).Bool(flag)
		got := eip712.Digest(eip712.DomainSeparator(name, version, chain, address), row.Sum())
		if !bytes.Equal(got[:], want) {
			t.Fatalf("digest %x, apitypes has %x", got, want)
		}
	})
}

func trim(b []byte) []byte {
	if len(b) > 32 {
		return b[:32]
	}
	return b
}

func TestKeccakEqualsGoEthereum(t *testing.T) {
	for _, n := range []int{0, 1, 135, 136, 137, 512, 513, 4096} {
		data := bytes.Repeat([]byte{0xa5}, n)
		if got, want := eip712.Keccak(data), crypto.Keccak256Hash(data); got != want {
			t.Errorf("%d bytes: %x, want %x", n, got, want)
		}
	}
}

func TestRecoverIsAsStrictAsTheContract(t *testing.T) {
	key, err := crypto.ToECDSA(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	digest := common.HexToHash("0x01")
	good, err := eip712.Sign(digest, key)
	if err != nil {
		t.Fatal(err)
	}
	signer := crypto.PubkeyToAddress(key.PublicKey)
	if got, err := eip712.Recover(digest, good); err != nil || got != signer {
		t.Fatalf("own signature recovers to %s, %v", got, err)
	}
	for name, bad := range map[string][]byte{
		"nil": nil, "short": good[:64], "long": append(bytes.Clone(good), 0),
		"v 0": with(good, 64, 0), "v 1": with(good, 64, 1), "v 29": with(good, 64, 29),
		"high s": highS(good), "zero r": fill(good, 0, 0), "zero s": fill(good, 32, 0),
		"r over the order": fill(good, 0, 0xff), "s over the order": fill(good, 32, 0xff),
	} {
		if got, err := eip712.Recover(digest, bad); !errors.Is(err, eip712.ErrSignature) {
			t.Errorf("%s: recovered %s, err %v", name, got, err)
		}
	}
	flipped := with(good, 64, good[64]^27^28)
	if got, err := eip712.Recover(digest, flipped); err == nil && got == signer {
		t.Error("a flipped v recovers to the signer")
	}
}

// FuzzRecover holds Recover to go-ethereum: what it takes must be a signature
// that Ecrecover takes, for the same address.
func FuzzRecover(f *testing.F) {
	key, _ := crypto.ToECDSA(bytes.Repeat([]byte{7}, 32))
	good, _ := eip712.Sign(common.Hash{1}, key)
	f.Add(common.Hash{1}.Bytes(), good)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, hash, sig []byte) {
		digest := common.BytesToHash(hash)
		got, err := eip712.Recover(digest, sig)
		if err != nil {
			return
		}
		v, r, s := sig[64]-27, new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:64])
		if !crypto.ValidateSignatureValues(v, r, s, true) {
			t.Fatalf("took a signature that is out of range: %x", sig)
		}
		public, err := crypto.SigToPub(digest[:], with(sig, 64, v))
		if err != nil || crypto.PubkeyToAddress(*public) != got {
			t.Fatalf("recovered %s, go-ethereum says %v", got, err)
		}
	})
}

func TestHashingDoesNotAllocate(t *testing.T) {
	amount := uint256.NewInt(5)
	if raceEnabled {
		t.Skip("the race detector drops pooled items at random")
	}
	allocs := testing.AllocsPerRun(1000, func() {
		var buf [3 * 32]byte
		sum := eip712.Words(buf[:0]).Hash(common.Hash{1}).Uint256(amount).Uint64(9).Sum()
		eip712.Digest(common.Hash{2}, sum)
	})
	if allocs != 0 {
		t.Errorf("%v allocations a digest, want 0", allocs)
	}
}

// TestRecoverAllocatesTheKeyOnly: a payee recovers for each payment.
func TestRecoverAllocatesTheKeyOnly(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector drops pooled items at random")
	}
	key, _ := crypto.ToECDSA(bytes.Repeat([]byte{7}, 32))
	sig, err := eip712.Sign(common.Hash{1}, key)
	if err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(1000, func() { eip712.Recover(common.Hash{1}, sig) }); n > 1 {
		t.Errorf("%v allocations a recovery, want 1", n)
	}
}

func with(sig []byte, at int, b byte) []byte {
	out := bytes.Clone(sig)
	out[at] = b
	return out
}

func fill(sig []byte, from int, b byte) []byte {
	out := bytes.Clone(sig)
	copy(out[from:from+32], bytes.Repeat([]byte{b}, 32))
	return out
}

func highS(sig []byte) []byte {
	out := with(sig, 64, sig[64]^27^28)
	s := new(big.Int).Sub(crypto.S256().Params().N, new(big.Int).SetBytes(sig[32:64]))
	s.FillBytes(out[32:64])
	return out
}
