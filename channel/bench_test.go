package channel_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
)

// BenchmarkAccept is a payment received: signature, judgement, fsync. One
// caller a channel, vouchers signed beforehand.
func BenchmarkAccept(b *testing.B) {
	for _, channels := range []int{1, 16, 256, 1024} {
		b.Run(fmt.Sprintf("channels=%d", channels), func(b *testing.B) { benchmarkAccept(b, channels) })
	}
}

func benchmarkAccept(b *testing.B, channels int) {
	p := &channel.Payee{Store: openStore(b).Payee(), Domain: testDomain}
	vouchers := make([][]channel.Voucher, channels)
	for c := range channels {
		terms := testTerms(uint256.NewInt(uint64(c + 1)).Hex())
		if _, err := p.Register(context.Background(), terms, channel.ChainView{Deposit: channel.MaxAmount()}); err != nil {
			b.Fatal(err)
		}
		for n := c; n < b.N; n += channels {
			vouchers[c] = append(vouchers[c], sign(b, testDomain, payerKey, terms.ID(), units(uint64(n+1))))
		}
	}
	b.ResetTimer()
	var wait sync.WaitGroup
	for c := range channels {
		wait.Go(func() {
			for _, v := range vouchers[c] {
				if r, err := p.Accept(context.Background(), v); err != nil || r.Outcome != channel.Accepted {
					b.Error(r.Outcome, err)
					return
				}
			}
		})
	}
	wait.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "vouchers/s")
}
