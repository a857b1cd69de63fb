package model

import (
	"crypto/ecdsa"
	"fmt"
	"path/filepath"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/sdk/chain"
)

// What a payer allows itself, in base units.
const (
	capChannel = 1 << 40
	capPayee   = 3 << 40
	capDay     = 1 << 41
)

// A payer is the renter's program: vouchers of both schemes over one database, and an outbox for what it sends itself.
type payer struct {
	w      *world
	name   string
	key    *ecdsa.PrivateKey
	db     *store.DB
	sender *chain.Sender

	// What the model knows of its budget, in base units.
	paid uint64            // signed for in all
	days map[string]uint64 // and by day

	kept *books // what a backup has; nil: there is none
}

func newPayer(w *world, i int) *payer {
	p := &payer{w: w, name: fmt.Sprintf("payer %d", i), days: map[string]uint64{}}
	p.key = key(p.name)
	for _, spender := range []common.Address{w.escrow, channel.BatchSettlementCollector} {
		w.must(w.send(p.key, w.token.ApproveCall(spender, channel.MaxAmount())))
	}
	p.open()
	return p
}

func (p *payer) file() string { return p.name + ".db" }

func (p *payer) open() {
	var err error
	p.db, err = store.OpenAlone(p.w.ctx, filepath.Join(p.w.dir, p.file()))
	p.w.must(err)
	txs, err := chain.OpenStore(p.w.ctx, p.db)
	p.w.must(err)
	p.sender = &chain.Sender{Backend: p.w.chain, Key: p.signer(), Store: txs, Poll: time.Nanosecond, Now: p.w.now}
}

func (p *payer) close() { _ = p.db.Close() }

func (p *payer) signer() *channel.Key { return channel.NewKey(p.key) }

func (p *payer) address() common.Address { return p.signer().Address() }

// pays signs the vouchers of a scheme.
func (p *payer) pays(s channel.Scheme) *channel.Payer {
	return &channel.Payer{Store: p.db.Payer(), Signer: p.signer(), Domain: p.w.till.desk(s).contract.Domain(), Now: func() time.Time { return p.w.wall },
		Caps: channel.Caps{PerChannel: units(capChannel), PerPayee: units(capPayee), PerDay: units(capDay)}}
}

// authorize signs an ERC-3009 authorization that has no end within a test.
func (p *payer) authorize(to common.Address, value uint64, nonce common.Hash) chain.Authorization {
	a, err := chain.SignAuthorization(p.w.ctx, p.signer(), p.w.separator, channel.Authorization{
		From: p.address(), To: to, Value: units(value), ValidBefore: 1 << 40, Nonce: nonce})
	p.w.must(err)
	return a
}
