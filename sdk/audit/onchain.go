package audit

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// lifeTolerance is by how much GPU time may be over the time between a channel's
// first block and its last: the chain's clock is not the provider's.
const lifeTolerance = 2 * time.Minute

// chain compares the amounts with the contract's, the transactions with what was
// mined, and the time that was billed with the time that the channel lived.
func (v *verifier) chain(ctx context.Context, backend chain.Backend) {
	on := v.onEscrow
	if v.X402 != nil {
		on = v.onX402
	}
	view, err := on(ctx, backend)
	if errors.Is(err, chain.ErrUnreachable) || errors.Is(err, chain.ErrChainID) || errors.Is(err, chain.ErrNoContract) || errors.Is(err, chain.ErrNotEscrow) {
		v.note("contract", "", err)
		return
	}
	if err == nil && (view.Settled != v.Settled.Int || view.Deposit != v.Deposit.Int) {
		err = fmt.Errorf("%w: the contract has settled %s of %s, it says %s of %s (one that was exported before the newest transaction is out of date: export it again)",
			ErrBundle, view.Settled.Dec(), view.Deposit.Dec(), v.Settled.Dec(), v.Deposit.Dec())
	}
	v.note("contract", fmt.Sprintf("settled %s of %s on chain %d, finalized %t", view.Settled.Dec(), view.Deposit.Dec(), v.terms.ChainID, view.Finalized), err)
	h := &history{v: v, backend: backend}
	v.note("transactions", fmt.Sprintf("%d are on the chain as they are here", len(v.Transactions)), h.transactions(ctx))
	v.note("events", fmt.Sprintf("%d of the channel: none of the %s's own is left out", len(h.events), v.Keeper), h.read(ctx))
	if len(h.events) > 0 {
		v.note("time on the chain", fmt.Sprintf("the channel's first event is in block %d", h.events[0].BlockNumber), h.life(ctx, view.Finalized))
	}
}

// onEscrow compares a bundle's amounts with our escrow, whose code is checked.
func (v *verifier) onEscrow(ctx context.Context, backend chain.Backend) (channel.ChainView, error) {
	escrow, err := chain.NewEscrow(ctx, backend, v.terms.Escrow)
	if err == nil && escrow.ChainID() != v.terms.ChainID {
		err = fmt.Errorf("%w: the channel is on chain %d, the endpoint serves %d", chain.ErrChainID, v.terms.ChainID, escrow.ChainID())
	}
	if err != nil {
		return channel.ChainView{}, err
	}
	v.note("escrow", fmt.Sprintf("%s has the code of a ChannelEscrow with %s of grace", escrow.Address(), escrow.Grace()), escrow.VerifyCode(ctx))
	view, err := escrow.View(ctx, v.Channel, nil)
	if errors.Is(err, channel.ErrUnknown) && v.Deposit.IsZero() {
		err = nil // it was meant to be opened, and was not
	}
	return view, err
}

// history is what the chain has of a channel.
type history struct {
	v       *verifier
	backend chain.Backend
	events  []types.Log
	known   map[common.Hash]bool // transactions in the bundle
}

// transactions holds each transaction of the bundle to the chain. None is there twice.
func (h *history) transactions(ctx context.Context) error {
	var failed findings
	h.known = make(map[common.Hash]bool, len(h.v.Transactions))
	for _, tx := range h.v.Transactions {
		if tx.Hash != (common.Hash{}) && h.known[tx.Hash] {
			failed.add(fmt.Errorf("%w: %q %s is there twice", ErrBundle, tx.Kind, tx.Hash))
			continue
		}
		h.known[tx.Hash] = true
		failed.add(h.transaction(ctx, tx))
	}
	return failed.err()
}

func (h *history) transaction(ctx context.Context, tx Transaction) error {
	if tx.Hash == (common.Hash{}) {
		if tx.Block != 0 || tx.Succeeded {
			return fmt.Errorf("%w: a %q was mined without a hash", ErrBundle, tx.Kind)
		}
		return nil
	}
	receipt, err := chain.Receipt(ctx, h.backend, tx.Hash)
	if err != nil {
		return fmt.Errorf("%q %s: %w", tx.Kind, tx.Hash, err)
	}
	if succeeded := receipt.Status == types.ReceiptStatusSuccessful; succeeded != tx.Succeeded || !receipt.BlockNumber.IsUint64() || receipt.BlockNumber.Uint64() != tx.Block {
		return fmt.Errorf("%w: %q %s is in block %d, succeeded %t; it says block %d, succeeded %t",
			ErrBundle, tx.Kind, tx.Hash, receipt.BlockNumber, succeeded, tx.Block, tx.Succeeded)
	}
	if err := h.kind(ctx, tx); err != nil || !tx.Succeeded {
		return err
	}
	for _, log := range receipt.Logs {
		if log.Address == h.v.terms.Escrow && len(log.Topics) > 1 && log.Topics[1] == h.v.Channel {
			return nil
		}
	}
	return fmt.Errorf("%w: %q %s is not about this channel", ErrBundle, tx.Kind, tx.Hash)
}

// escrowKinds is what each method of the escrow is called in a bundle.
var escrowKinds = map[string]chain.Kind{
	"open": chain.Open, "openWithAuthorization": chain.Open,
	"topUp": chain.TopUp, "topUpWithAuthorization": chain.TopUp,
	"settle": chain.Settle, "settleBatch": chain.SettleBatch,
	"close": chain.Close, "closeWithAuthorization": chain.Close,
	"requestClose": chain.RequestClose, "requestCloseWithAuthorization": chain.RequestClose,
	"cancelCloseWithAuthorization": chain.CancelClose,
	"withdraw":                     chain.Withdraw,
	"withdrawCredit":               chain.WithdrawCredit, "withdrawCreditWithAuthorization": chain.WithdrawCredit,
}

var escrowABI = func() *abi.ABI {
	parsed, err := bindings.ChannelEscrowMetaData.ParseABI()
	if err != nil {
		panic("audit: the escrow's interface does not parse: " + err.Error())
	}
	return parsed
}()

// kind holds what a transaction is said to be against what it calls.
func (h *history) kind(ctx context.Context, tx Transaction) error {
	sent, _, err := h.backend.TransactionByHash(ctx, tx.Hash)
	if err != nil {
		return fmt.Errorf("%q %s: %w", tx.Kind, tx.Hash, err)
	}
	methods, kinds := h.v.calls()
	method, err := methods.MethodById(sent.Data())
	if err != nil || sent.To() == nil || *sent.To() != h.v.terms.Escrow || kinds[method.Name] != tx.Kind {
		return fmt.Errorf("%w: %s is said to be a %q of the contract, and is another call", ErrBundle, tx.Hash, tx.Kind)
	}
	return nil
}

// read reads the channel's events, and looks for those of the keeper's own
// transactions that the bundle leaves out.
func (h *history) read(ctx context.Context) error {
	head, err := h.backend.BlockNumber(ctx)
	if err != nil {
		return chain.Unread("the newest block", err)
	}
	asked := 0
	if h.events, err = h.logs(ctx, 0, head, &asked); err != nil {
		return err
	}
	keeper := common.Address(h.v.Terms.Payee)
	if h.v.Keeper == KeptByPayer {
		keeper = common.Address(h.v.Terms.Payer)
	}
	var failed findings
	for _, log := range h.events {
		if h.known[log.TxHash] {
			continue
		}
		h.known[log.TxHash] = true
		from, err := h.sender(ctx, log.TxHash)
		if err == nil && from == keeper {
			err = fmt.Errorf("%w: the %s sent %s in block %d, which it leaves out", ErrBundle, h.v.Keeper, log.TxHash, log.BlockNumber)
		}
		failed.add(err)
	}
	return failed.err()
}

// maxAsked bounds into how many pieces a request for events is cut.
const maxAsked = 4096

// logs reads the channel's events of a range of blocks, in halves where the
// endpoint refuses it whole.
func (h *history) logs(ctx context.Context, from, to uint64, asked *int) ([]types.Log, error) {
	*asked++
	logs, err := h.backend.FilterLogs(ctx, ethereum.FilterQuery{
		FromBlock: new(big.Int).SetUint64(from), ToBlock: new(big.Int).SetUint64(to),
		Addresses: []common.Address{h.v.terms.Escrow}, Topics: [][]common.Hash{nil, {h.v.Channel}},
	})
	if err == nil || from == to || *asked > maxAsked || ctx.Err() != nil {
		return logs, err
	}
	middle := from + (to-from)/2
	first, err := h.logs(ctx, from, middle, asked)
	if err != nil {
		return nil, fmt.Errorf("the endpoint does not show the channel's events, so that left out transactions cannot be found: use one that does: %w", err)
	}
	second, err := h.logs(ctx, middle+1, to, asked)
	return append(first, second...), err
}

func (h *history) sender(ctx context.Context, hash common.Hash) (common.Address, error) {
	tx, _, err := h.backend.TransactionByHash(ctx, hash)
	if err != nil {
		return common.Address{}, fmt.Errorf("transaction %s: %w", hash, err)
	}
	return types.Sender(types.LatestSignerForChainID(new(big.Int).SetUint64(h.v.terms.ChainID)), tx)
}

// life holds the time that was billed to the time that the channel lived.
func (h *history) life(ctx context.Context, finalized bool) error {
	began, err := h.at(ctx, h.events[0].BlockNumber)
	if err != nil {
		return err
	}
	ended := time.Now()
	if finalized {
		if ended, err = h.at(ctx, h.events[len(h.events)-1].BlockNumber); err != nil {
			return err
		}
	}
	lived := max(0, ended.Sub(began)) + lifeTolerance
	var failed findings
	for uuid, ran := range h.v.deviceTime() {
		if ran > lived {
			failed.add(fmt.Errorf("%w: %s was billed for %s, the channel lived %s", ErrBundle, uuid, ran, ended.Sub(began)))
		}
	}
	return failed.err()
}

func (h *history) at(ctx context.Context, block uint64) (time.Time, error) {
	header, err := h.backend.HeaderByNumber(ctx, new(big.Int).SetUint64(block))
	if err != nil {
		return time.Time{}, chain.Unread(fmt.Sprintf("the time of block %d", block), err)
	}
	return time.Unix(int64(header.Time), 0), nil
}

// deviceTime sums what each device was billed for over all leases.
func (b *Bundle) deviceTime() map[string]time.Duration {
	sums := make(map[string]time.Duration)
	for _, l := range b.Leases {
		if len(l.Records) == 0 {
			continue
		}
		for _, d := range l.Records[len(l.Records)-1].Evidence.Devices {
			if sum := sums[d.Device.UUID] + time.Duration(d.Total); sum >= sums[d.Device.UUID] {
				sums[d.Device.UUID] = sum
			}
		}
	}
	return sums
}

// findings joins what did not hold: the first few, and how many there are. A
// bundle can have a million faults, and one line is enough for most of them.
type findings struct {
	first []error
	count int
}

const maxFindings = 10

func (f *findings) add(err error) {
	if err == nil {
		return
	}
	if f.count++; f.count <= maxFindings {
		f.first = append(f.first, err)
	}
}

func (f *findings) err() error {
	if f.count > maxFindings {
		return errors.Join(append(f.first[:maxFindings:maxFindings], fmt.Errorf("and %d more", f.count-maxFindings))...)
	}
	return errors.Join(f.first...)
}
