package interop

import (
	"crypto/ecdsa"
	"encoding/json"
	"maps"
	"math/big"
	"net/http"
	"strconv"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
)

// shopper is one stock client, its channel, and the books that are kept of both.
type shopper struct {
	*counter
	name   string
	key    *ecdsa.PrivateKey
	id     common.Hash // of its channel, once it has one
	spent  uint64      // the sum of what its receipts say
	gaps   uint64      // what it was told was charged beside that
	cut    int         // requests since that were cut off before their answer: the time until then may be charged
	credit uint64      // of what its receipts say, what need not be used yet
	rest   uint64      // of its newest voucher, what its lease may use before the next
	prior  uint64      // and of the one before
	exact  bool        // its money was given back: it knows all that was charged
}

// shopper makes a client with empty storage that pays in every token; options go to the script.
func (c *counter) shopper(key *ecdsa.PrivateKey, options map[string]any) *shopper {
	c.Helper()
	s := &shopper{counter: c, key: key, name: c.stock.name(), rest: payGap, prior: payGap}
	command := map[string]any{"name": s.name, "rpc": c.chain.URL, "key": hexutil.Encode(crypto.FromECDSA(key)), "spend": false}
	maps.Copy(command, options)
	if d := receive(c.T, c.stock.tell(c.T, "client", command)); d.Error != "" {
		c.Fatal(d.Error)
	}
	return s
}

// forgetful is the same client with empty storage.
func (s *shopper) forgetful() *shopper {
	s.Helper()
	again := s.shopper(s.key, nil)
	again.id, again.spent, again.gaps, again.rest = s.id, s.spent, s.gaps, s.rest
	return again
}

// asks is one paid call as the client makes it, for a tick if options do not say otherwise.
func (s *shopper) asks(options map[string]any) <-chan json.RawMessage {
	s.Helper()
	command := map[string]any{"name": s.name, "url": s.server.URL + "/tick"}
	maps.Copy(command, options)
	return s.stock.tell(s.T, "pay", command)
}

// asked is a paid call and what came of it.
func (s *shopper) asked(options map[string]any) did {
	s.Helper()
	return receive(s.T, s.asks(options))
}

// insisted is what came of a call, or, where the client was corrected once and had to be again, of the next one. It gives
// up then: on a busy machine its lease uses more of its slack before the corrected voucher comes.
func (s *shopper) insisted(d did, options map[string]any) did {
	s.Helper()
	for tries := 0; d.Status == http.StatusPaymentRequired && d.corrections() > 1+tries && tries < 10; tries++ {
		next := s.asked(options)
		next.Requests = append(d.Requests, next.Requests...)
		d = next
	}
	return d
}

// tick pays for one window.
func (s *shopper) tick() tick {
	s.Helper()
	return s.took(s.insisted(s.asked(nil), nil))
}

// tick is the answer to a paid request; its body is that of /tick.
type tick struct {
	did
	charged uint64
	body    struct {
		LeaseID common.Hash            `json:"leaseId"`
		Devices []string               `json:"devices"`
		State   string                 `json:"state"`
		Record  *metering.SignedRecord `json:"record"`
	}
}

// took enters an answer to a call that must have been served into the books: what the client keeps is what it kept before,
// what it was charged, and, only where it was corrected, what its lease used in between.
func (s *shopper) took(d did) tick {
	s.Helper()
	t := tick{did: d, charged: s.paid(d)}
	s.keeps(d)
	if d.Body != "" {
		if err := json.Unmarshal([]byte(d.Body), &t.body); err != nil {
			s.Fatalf("%s: %v", d.Body, err)
		}
	}
	return t
}

// paid is what a call cost that must have been served.
func (s *shopper) paid(d did) uint64 {
	s.Helper()
	if d.Error != "" || d.Status != http.StatusOK || d.Settled == nil || !d.Settled.Success || d.Channel == nil {
		s.Fatalf("not served: %+v", d)
	}
	s.id = d.Channel.ID
	charged := number(s.T, d.Settled.Extra.ChargedAmount)
	s.spent += charged
	s.prior, s.rest = s.rest, max(payGap, payCeiling-min(charged, payCeiling)) // more where the tick was answered with less than a window
	return charged
}

// keeps compares what the client's storage has with the books.
func (s *shopper) keeps(d did) {
	s.Helper()
	charged, known := number(s.T, d.Channel.Charged), s.spent+s.gaps
	if charged < known || charged > known+uint64(d.corrections()+s.cut)*(s.prior+s.credit) {
		s.Fatalf("the client keeps %d as charged, it was told of %d: %+v", charged, known, d)
	}
	s.gaps, s.cut = s.gaps+charged-known, 0
}

// refunds asks for money back, for all of it if no amount is given, and returns how much came.
func (s *shopper) refunds(amount string) uint64 {
	s.Helper()
	command := map[string]any{"name": s.name, "url": s.server.URL + "/tick"}
	if amount != "" {
		command["amount"] = amount
	}
	before := s.chain.Tokens(s, s.address())
	d := receive(s.T, s.stock.tell(s.T, "refund", command))
	if d.Error != "" || !d.Settled.Success || d.Settled.Transaction == "" || d.Settled.Extra.ChargedAmount != "" {
		s.Fatalf("no refund: %+v", d)
	}
	moved := number(s.T, d.Settled.Amount)
	if got := s.chain.Tokens(s, s.address()) - before; got != moved {
		s.Errorf("a refund of %d is said to be %d", got, moved)
	}
	if amount != "" {
		s.keeps(d) // a lease that ran on meanwhile has it corrected first
		return moved
	}
	charged, known := number(s.T, d.Settled.Extra.ChannelState.ChargedCumulativeAmount), s.spent+s.gaps
	if charged+s.credit < known || charged > known+payGap+s.rest+s.credit || d.Channel != nil {
		s.Errorf("%d was charged in all, the client knew of %d: %+v", charged, known, d)
	}
	s.gaps, s.credit, s.exact = charged-s.spent, 0, true
	return moved
}

func (s *shopper) address() common.Address { return crypto.PubkeyToAddress(s.key.PublicKey) }

// on is what the contract says of a channel.
func (c *counter) on(id common.Hash) chain.BatchSettlementState {
	c.Helper()
	s, err := c.contract.State(c.Context(), id)
	if err != nil {
		c.Fatal(err)
	}
	return s
}

// holds is what the contract holds of the client's channel.
func (s *shopper) holds() uint64 {
	s.Helper()
	deposit := s.on(s.id).View.Deposit
	return deposit.Uint64()
}

// due is what is to be claimed of channels, by the provider's database.
func (c *counter) due(shoppers []*shopper) (each []uint64) {
	c.Helper()
	db, err := store.Open(c.Context(), c.config.Database)
	if err != nil {
		c.Fatal(err)
	}
	defer db.Close()
	for _, s := range shoppers {
		state, err := db.Payee().Load(c.Context(), s.id)
		if err != nil {
			c.Fatal(err)
		}
		due := state.Payable() // not what a late reading used beyond a voucher
		each = append(each, due.Uint64())
	}
	return each
}

// audit ends everything and compares all books: what was charged is what the contract claimed and the provider received,
// and no base unit is anywhere else. Where a client did not take its money back, its lease may have gone on after its last
// answer for as long as was agreed.
func (c *counter) audit(shoppers ...*shopper) {
	c.Helper()
	if err := c.provider.Drain(c.Context()); err != nil {
		c.Fatal(err)
	}
	if err := c.provider.Settle(c.Context()); err != nil {
		c.Fatal(err)
	}
	c.halt()
	var sum, held uint64
	for i, due := range c.due(shoppers) {
		s := shoppers[i]
		on, known := c.on(s.id).View, s.spent+s.gaps
		if on.Settled.Uint64() != due {
			c.Errorf("channel %s: claimed %s, due was %d", s.id, on.Settled.Dec(), due)
		}
		if due+s.credit < known || due > known+s.rest+s.credit || s.exact && due != known {
			c.Errorf("channel %s: claimed %d, the client knows of %d", s.id, due, known)
		}
		sum += due
		held += on.Deposit.Uint64() - on.Settled.Uint64()
	}
	var left uint64
	for _, key := range c.payers {
		address := crypto.PubkeyToAddress(key.PublicKey)
		left += c.chain.Tokens(c, address)
		if coin, err := c.chain.Backend.BalanceAt(c.Context(), address, nil); err != nil || coin.Cmp(new(big.Int)) != 0 {
			c.Errorf("%s has %s wei (%v), it needs none", address, coin, err)
		}
	}
	paid, escrow := c.chain.Tokens(c, c.config.Key.Address()), c.chain.Tokens(c, channel.BatchSettlementEscrow)
	if paid != sum || escrow != held || left+escrow+paid != c.minted {
		c.Errorf("claimed %d, paid %d; the channels hold %d, the contract %d; payers have %d of %d", sum, paid, held, escrow, left, c.minted)
	}
}

// name is one for a client that no other has.
func (s *stock) name() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.named++
	return "client " + strconv.Itoa(s.named)
}
