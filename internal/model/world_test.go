package model

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/params"
	"github.com/holiman/uint256"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/bindings/batchsettlement/standin"
	"github.com/gpupay/gpupay/bindings/testtoken"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/model/memchain"
	"github.com/gpupay/gpupay/sdk/chain"
)

const (
	grace         = time.Hour // of the escrow and of x402's channels
	confirmations = 3         // before the payee believes a deposit; re-orgs are less deep
	minted        = 1 << 62   // base units of each payer
)

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// A world is a chain with our contracts and everybody on it.
type world struct {
	*rapid.T
	ctx     context.Context
	chain   *memchain.Chain
	dir     string // of the databases
	wall    time.Time
	looks   atomic.Int64 // at the clock since something began
	moved   atomic.Int64 // microseconds that the looks have moved it
	spiking bool         // fees are beyond what the node lets a transaction pay
	escrow  common.Address
	token   *chain.Token

	separator common.Hash // of the token
	stranger  *ecdsa.PrivateKey
	payee     *channel.Key
	payers    []*payer
	till      *till
	accounts  []*account
	salts     byte
	kept      *books // of the payee's database; nil: there is no backup
	restored  bool   // the payee goes on from a backup
	last      reading
	seen      map[string]int
}

// key is the same in each run.
func key(name string) *ecdsa.PrivateKey {
	k, err := crypto.ToECDSA(crypto.Keccak256([]byte("model " + name)))
	if err != nil {
		panic(err)
	}
	return k
}

func newWorld(t *rapid.T, seen map[string]int) *world {
	dir, err := os.MkdirTemp(scratch(), "gpupay-model-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w := &world{T: t, ctx: context.Background(), dir: dir, wall: epoch, seen: seen, stranger: key("stranger"), payee: channel.NewKey(key("payee"))}
	coins := new(big.Int).Mul(big.NewInt(1000), big.NewInt(params.Ether))
	alloc := types.GenesisAlloc{
		channel.BatchSettlementEscrow:    {Code: common.FromHex(standin.BatchSettlement)},
		channel.BatchSettlementCollector: {Code: common.FromHex(standin.ERC3009DepositCollector)},
	}
	for _, who := range []string{"stranger", "payee", "payer 0", "payer 1"} {
		alloc[crypto.PubkeyToAddress(key(who).PublicKey)] = types.Account{Balance: coins}
	}
	if w.chain, err = memchain.New(uint64(epoch.Unix()), alloc); err != nil {
		t.Fatal(err)
	}
	if w.escrow, err = chain.Deploy(w.ctx, w.chain, channel.NewKey(w.stranger), grace); err != nil {
		t.Fatal(err)
	}
	w.deployToken()
	for i := range 2 {
		w.payers = append(w.payers, newPayer(w, i))
	}
	w.till = openTill(w)
	t.Cleanup(func() {
		w.till.close()
		for _, p := range w.payers {
			p.close()
		}
	})
	return w
}

// scratch is a folder in memory where there is one: thousands of databases a minute wear out a disk.
func scratch() string {
	if _, err := os.Stat("/dev/shm"); err == nil {
		return "/dev/shm"
	}
	return os.TempDir()
}

func (w *world) deployToken() {
	opts := bind.NewKeyedTransactor(w.stranger, big.NewInt(memchain.ChainID))
	address, _, err := bind.DeployContract(opts, common.FromHex(testtoken.TestTokenMetaData.Bin), w.chain, nil)
	if err != nil {
		w.Fatal(err)
	}
	if w.token, err = chain.NewToken(w.ctx, w.chain, address); err != nil {
		w.Fatal(err)
	}
	if w.separator, err = w.token.DomainSeparator(w.ctx); err != nil {
		w.Fatal(err)
	}
	for _, who := range []string{"stranger", "payer 0", "payer 1"} {
		mint := testtoken.NewTestToken().PackMint(crypto.PubkeyToAddress(key(who).PublicKey), big.NewInt(minted))
		w.must(w.send(w.stranger, chain.Call{Kind: "mint", To: address, Data: mint}))
	}
}

func (w *world) must(err error) {
	if err != nil {
		w.Helper()
		w.Fatal(err)
	}
}

// now is the clock of all programs. It moves a little whenever it is looked at, and much for who waits for it.
func (w *world) now() time.Time {
	step := time.Microsecond
	if w.looks.Add(1) > 2*patience {
		step = time.Second
	}
	return w.wall.Add(time.Duration(w.moved.Add(int64(step/time.Microsecond))) * time.Microsecond)
}

// send has a key's transaction mined, or wait if the chain is halted. What the contract refuses is a *chain.Revert.
func (w *world) send(from *ecdsa.PrivateKey, call chain.Call) error {
	address := crypto.PubkeyToAddress(from.PublicKey)
	gas, err := w.chain.EstimateGas(w.ctx, ethereum.CallMsg{From: address, To: &call.To, Data: call.Data})
	if err != nil && w.till != nil {
		return w.till.session.Simulate(w.ctx, address, call) // which knows the contracts' words
	}
	if err != nil {
		return fmt.Errorf("%s: %w", call, err)
	}
	nonce, err := w.chain.PendingNonceAt(w.ctx, address)
	if err != nil {
		return err
	}
	tx, err := types.SignNewTx(from, types.LatestSignerForChainID(big.NewInt(memchain.ChainID)), &types.DynamicFeeTx{
		ChainID: big.NewInt(memchain.ChainID), Nonce: nonce, GasTipCap: w.chain.Tip, GasFeeCap: big.NewInt(100 * params.GWei),
		Gas: gas + gas/2, To: &call.To, Data: call.Data, Value: new(big.Int),
	})
	if err != nil {
		return err
	}
	return w.chain.SendTransaction(w.ctx, tx)
}

// sick says that the chain or the node does not do what is asked of it at the moment.
func (w *world) sick() bool {
	return w.chain.Halted || w.chain.Indexing || w.chain.Unpaid > 0 || w.spiking
}

// Programs that wait for a chain that does not answer are let look at it so often, and at most so long.
const (
	patience     = 12
	longPatience = 2 * time.Second
)

// during runs what may wait for the chain. On a chain that answers it must come to an end.
func (w *world) during(what string, f func(context.Context) error) error {
	limit := 20 * time.Second
	if w.sick() {
		limit = longPatience
	}
	ctx, cancel := context.WithTimeout(w.ctx, limit)
	defer cancel()
	if w.sick() {
		var asked atomic.Int64
		w.chain.Asked = func() {
			if asked.Add(1) > patience {
				cancel()
			}
		}
		defer func() { w.chain.Asked = nil }()
	}
	w.looks.Store(0)
	err := f(ctx)
	w.looks.Store(0)
	if !w.sick() && errors.Is(err, context.DeadlineExceeded) {
		w.Fatalf("%s comes to no end on a chain that answers: %v", what, err)
	}
	return err
}

// pass has time go by for all, with a block at its end if the chain makes any.
func (w *world) pass(d time.Duration) {
	w.wall = w.wall.Add(d)
	if !w.chain.Halted {
		w.must(w.chain.Advance(uint64(d / time.Second)))
	}
}

func (w *world) balance(of common.Address) uint64 {
	known := w.last.block == w.chain.Head()
	if units, ok := w.last.balances[of]; known && ok {
		return units
	}
	b, err := w.token.Balance(w.ctx, of)
	w.must(err)
	if !b.IsUint64() {
		w.Fatalf("%s has %s", of, b.Dec())
	}
	if known {
		w.last.balances[of] = b.Uint64()
	}
	return b.Uint64()
}

func units(n uint64) uint256.Int { return *uint256.NewInt(n) }

// books are what the model knows of a database at the time of its backup.
type books struct {
	payees map[*account]payeeBook
	payers map[*account]payerBook
	paid   uint64
	days   map[string]uint64
}

// backup copies a database that nobody has open, or puts the last copy in its place. It is the payee's if p is nil.
func (w *world) backup(file string, kept *books, restore bool, p *payer) *books {
	if restore && kept != nil {
		w.copyFile(file+".bak", file)
		w.recall(kept, p)
		return kept
	}
	w.copyFile(file, file+".bak")
	b := &books{payees: map[*account]payeeBook{}, payers: map[*account]payerBook{}}
	for _, a := range w.accounts {
		b.payees[a], b.payers[a] = a.payeeBook, a.payerBook
	}
	if p != nil {
		b.paid, b.days = p.paid, maps.Clone(p.days)
	}
	return b
}

// recall has the model know no more than a database that was put back.
func (w *world) recall(b *books, p *payer) {
	for _, a := range w.accounts {
		old, was := b.payers[a]
		switch {
		case p == nil:
			a.payeeBook = b.payees[a]
		case a.payer == p && was:
			a.payerBook = old
		case a.payer == p:
			a.payerBook = payerBook{lost: true}
		}
	}
	if p != nil {
		p.paid, p.days = b.paid, maps.Clone(b.days)
	}
}

// copyFile copies a database, which has no journal beside it while nobody has it open: what is under way when a program
// closes it still ends.
func (w *world) copyFile(from, to string) {
	for until := time.Now().Add(20 * time.Second); w.journaled(from); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			w.Fatalf("%s was left with a journal", from)
		}
	}
	text, err := os.ReadFile(filepath.Join(w.dir, from))
	w.must(err)
	for _, suffix := range journals {
		_ = os.Remove(filepath.Join(w.dir, to+suffix))
	}
	w.must(os.WriteFile(filepath.Join(w.dir, to), text, 0o600))
}

// journals are what SQLite keeps beside a database that is open.
var journals = []string{"-wal", "-shm"}

func (w *world) journaled(file string) bool {
	for _, suffix := range journals {
		if left, err := os.Stat(filepath.Join(w.dir, file+suffix)); err == nil && left.Size() > 0 {
			return true
		}
	}
	return false
}
