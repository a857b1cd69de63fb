package model

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/ethereum/go-ethereum/params"
	"pgregory.net/rapid"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/model/memchain"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/provider"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wire"
)

// What the provider sends for others: nothing of less, and for one payer in a day no more than some eight deposits cost.
const leastTransfer = 200 // base units: a tenth of the least deposit

var gasPerPayer = big.NewInt(15e14) // wei

// A sponsorship is what the provider's deposits for others have cost, as the chain says.
type sponsorship struct {
	next  uint64 // the first block that was not looked at
	spent map[common.Address]*big.Int
	most  *big.Int // the dearest of them
}

// Drain has a renter that is none of ours make the provider send top-ups, whether or not they are worth their gas.
func (x *trades) Drain(t *rapid.T) {
	m, d := x.m, x.any(t)
	amount := rapid.SampledFrom([]uint64{1, leastTransfer - 1, leastTransfer, leastTransfer + 100}).Draw(t, "amount")
	for range rapid.IntRange(4, 24).Draw(t, "times") {
		m.salts++
		status, err := m.askTopUp(d, amount, common.Hash{0: 1, 31: m.salts})
		if err != nil {
			t.Log(err)
			return
		}
		m.seen[fmt.Sprintf("top-up of %d: %d", amount, status)]++
		if status == http.StatusOK && amount < leastTransfer {
			m.Fatalf("the provider pays the gas of a top-up of %d", amount)
		}
		if status != http.StatusOK {
			return
		}
	}
}

// askTopUp signs a top-up of a deal beside its renter's books, and asks the provider to send it.
func (m *market) askTopUp(d *deal, amount uint64, salt common.Hash) (status int, err error) {
	terms := d.rental.Terms()
	separator, err := m.token.DomainSeparator(m.ctx)
	m.must(err)
	nonce := channel.TopUpNonce(d.id, units(amount), terms.Payer, salt)
	a, err := chain.SignAuthorization(m.ctx, d.by.config.Key, separator, channel.Authorization{
		From: terms.Payer, To: terms.Escrow, Value: units(amount), ValidBefore: 1 << 40, Nonce: nonce})
	m.must(err)
	resp, err := http.Get(m.server.URL + "/lease")
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	challenges, err := wire.ParseChallenges(resp.Header)
	if err != nil || len(challenges) == 0 {
		return 0, errors.Join(err, errors.New("no challenge"))
	}
	value := wire.NewAmount(units(amount))
	header, err := wire.Credential{Challenge: challenges[0], Source: wire.Source(terms.ChainID, terms.Payer), Payload: wire.Payload{
		Action: wire.ActionTopUp, Type: wire.TypeAuthorization, ChannelID: d.id, AdditionalDeposit: &value, Salt: &salt, Signature: a.Signature,
		Authorization: &wire.Authorization{From: wire.Address(a.From), To: wire.Address(a.To), Value: value,
			ValidAfter: wire.NewAmount(units(0)), ValidBefore: wire.NewAmount(units(a.ValidBefore)), Nonce: nonce}}}.Header()
	m.must(err)
	req, err := http.NewRequestWithContext(m.ctx, http.MethodPost, m.server.URL+"/lease", nil)
	m.must(err)
	req.Header.Set("Authorization", header)
	m.gifts[d.id] += amount // at most
	resp, err = http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// sponsored holds what the provider has sent for each payer to its budget, which one transaction may pass.
func (m *market) sponsored() {
	escrow, err := chain.NewEscrow(m.ctx, m.chain, m.escrow)
	m.must(err)
	head, err := m.chain.BlockNumber(m.ctx)
	m.must(err)
	s := &m.sponsorship
	for ; s.next <= head; s.next++ {
		block, err := m.chain.BlockByNumber(m.ctx, new(big.Int).SetUint64(s.next))
		m.must(err)
		for _, tx := range block.Transactions() {
			m.count(escrow, tx)
		}
	}
	for payer, spent := range s.spent {
		if budget := m.config.Limits.SponsoredGasPerPayer; spent.Cmp(new(big.Int).Add(budget, s.most)) > 0 && m.restored == 0 {
			m.Fatalf("the provider has sent deposits of %s for %s wei, the budget is %s", payer, spent, budget)
		}
	}
}

// count adds a transaction, if it is a deposit that the provider sent for a payer.
func (m *market) count(escrow *chain.Escrow, tx *types.Transaction) {
	from, err := types.Sender(types.LatestSignerForChainID(tx.ChainId()), tx)
	m.must(err)
	if from != m.payee.Address() || tx.To() == nil || *tx.To() != m.escrow {
		return
	}
	receipt, err := m.chain.TransactionReceipt(m.ctx, tx.Hash())
	m.must(err)
	for _, d := range m.deals {
		t, open, topUp := d.rental.Terms(), []byte(nil), []byte(nil)
		open = escrow.OpenAuthorizedCall(t, chain.Authorization{}).Data[:4]
		topUp = escrow.TopUpAuthorizedCall(t, common.Hash{}, chain.Authorization{}).Data[:4]
		if string(tx.Data()[:4]) != string(open) && string(tx.Data()[:4]) != string(topUp) {
			return
		}
		for _, l := range receipt.Logs {
			if len(l.Topics) > 1 && l.Topics[1] == d.id {
				s := &m.sponsorship
				cost := new(big.Int).Mul(receipt.EffectiveGasPrice, new(big.Int).SetUint64(receipt.GasUsed))
				if s.spent[t.Payer] == nil {
					s.spent[t.Payer] = new(big.Int)
				}
				s.spent[t.Payer].Add(s.spent[t.Payer], cost)
				if cost.Cmp(s.most) > 0 {
					s.most = cost
				}
				m.seen["sponsored"]++
				return
			}
		}
	}
}

// Absurd is a provider whose offer lets it bill for longer than anybody would leave a GPU alone, or be silent for as long.
// It gets nothing signed.
func (x *trades) Absurd(t *rapid.T) {
	m := x.m
	config := m.config
	config.Key, config.Database = channel.NewKey(key("stranger")), filepath.Join(m.dir, "absurd.db")
	if long := time.Duration(rapid.IntRange(2, 1<<20).Draw(t, "hours")) * time.Hour; rapid.Bool().Draw(t, "silent") {
		config.Metering.RecordEvery = long
	} else {
		config.Terms.Credit = long
	}
	p, err := provider.New(m.ctx, config)
	m.must(err)
	defer p.Close()
	server := httptest.NewServer(p)
	defer server.Close()
	ctx, cancel := context.WithTimeout(m.ctx, 5*time.Second)
	defer cancel()
	if _, err := m.renters[0].Quote(ctx, server.URL); !errors.Is(err, renter.ErrOffer) {
		m.Fatalf("an offer with a credit of %s and records each %s is taken: %v", config.Terms.Credit, config.Metering.RecordEvery, err)
	}
	m.seen["absurd offers"]++
}

// TestDrained: of a provider with little coin a renter has sent what it will send, and enough is left to fetch what it owes.
func TestDrained(t *testing.T) {
	set(t, "rapid.checks", strconv.Itoa(markets(t)))
	set(t, "rapid.nofailfile", "true")
	set(t, "rapid.shrinktime", "1ms")
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		coin := big.NewInt(1e14 * rapid.Int64Range(38, 50).Draw(rt, "coin")) // what is kept, and some top-ups more
		m := newMarket(rt, seen, func(c *provider.Config) {
			c.Limits.SponsoredGasPerPayer, c.Limits.ReservedSettlements = big.NewInt(params.Ether), 2
			leave(rt, c.Chain.Backend, key("payee"), coin)
		})
		d := m.lease()
		m.hear(d, rapid.Uint64Range(1, 8).Draw(rt, "records"))
		if rapid.Bool().Draw(rt, "away") {
			m.pause(d)
		}
		for range 40 {
			m.salts++
			status, err := m.askTopUp(d, leastTransfer, common.Hash{0: 1, 31: m.salts})
			m.must(err)
			if seen[fmt.Sprint(status)]++; status != http.StatusOK {
				break
			}
		}
		m.clearance()
	})
	t.Log(seen)
}

// leave has somebody who has sent nothing yet send all coins away but some.
func leave(t *rapid.T, b chain.Backend, from *ecdsa.PrivateKey, some *big.Int) {
	const gas = 21_000
	to, price := crypto.PubkeyToAddress(key("stranger").PublicKey), big.NewInt(4*params.GWei)
	have, err := b.BalanceAt(context.Background(), crypto.PubkeyToAddress(from.PublicKey), nil)
	if err != nil {
		t.Fatal(err)
	}
	value := new(big.Int).Sub(have, new(big.Int).Add(some, new(big.Int).Mul(price, big.NewInt(gas))))
	id := big.NewInt(memchain.ChainID)
	tx, err := types.SignNewTx(from, types.LatestSignerForChainID(id),
		&types.DynamicFeeTx{ChainID: id, GasTipCap: price, GasFeeCap: price, Gas: gas, To: &to, Value: value})
	if err == nil {
		err = b.SendTransaction(context.Background(), tx)
	}
	if err != nil {
		t.Fatal(err)
	}
}
