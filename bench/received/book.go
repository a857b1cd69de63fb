package received

import (
	"context"
	"crypto/ecdsa"
	"encoding/binary"
	"runtime"
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
)

// book is the payers' side of a round: vouchers signed before the clock runs.
type book struct {
	domain   channel.Domain
	key      *channel.Key
	terms    []channel.Terms
	vouchers [][]channel.Voucher // by channel; the n-th is for n+1 base units
}

func newBook(channels int) (*book, error) {
	private, err := crypto.GenerateKey()
	if err != nil {
		return nil, err
	}
	return bookOf(private, channels), nil
}

// bookOf has one payer for all channels.
func bookOf(private *ecdsa.PrivateKey, channels int) *book {
	b := &book{key: channel.NewKey(private), vouchers: make([][]channel.Voucher, channels)}
	escrow := common.Address{19: 1}
	b.domain = channel.EscrowDomain(31337, escrow)
	for c := range channels {
		t := channel.Terms{ChainID: 31337, Escrow: escrow, Payer: b.key.Address(),
			Payee: common.Address{19: 2}, Token: common.Address{19: 3}}
		binary.BigEndian.PutUint32(t.Salt[28:], uint32(c+1))
		b.terms = append(b.terms, t)
	}
	return b
}

// fill signs until every channel has n vouchers.
func (b *book) fill(n int) error {
	var wait sync.WaitGroup
	workers := runtime.GOMAXPROCS(0)
	failed := make([]error, workers)
	for w := range workers {
		wait.Go(func() {
			for c := w; c < len(b.vouchers) && failed[w] == nil; c += workers {
				failed[w] = b.sign(c, n)
			}
		})
	}
	wait.Wait()
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *book) sign(c, n int) error {
	id := b.terms[c].ID()
	for len(b.vouchers[c]) < n {
		v := channel.Voucher{ChannelID: id}
		v.Cumulative.SetUint64(uint64(len(b.vouchers[c]) + 1))
		var err error
		if v.Signature, err = b.key.Sign(context.Background(), b.domain.Digest(id, &v.Cumulative)); err != nil {
			return err
		}
		b.vouchers[c] = append(b.vouchers[c], v)
	}
	return nil
}

// open registers every channel with a payee.
func (b *book) open(ctx context.Context, p *channel.Payee) error {
	var wait sync.WaitGroup
	failed := make(chan error, len(b.terms))
	for _, t := range b.terms {
		wait.Go(func() {
			_, err := p.Register(ctx, t, channel.ChainView{Deposit: channel.MaxAmount()})
			failed <- err
		})
	}
	wait.Wait()
	close(failed)
	for err := range failed {
		if err != nil {
			return err
		}
	}
	return nil
}
