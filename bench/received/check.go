package received

import (
	"context"
	"errors"
	"fmt"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/channel"
)

// checks are the ways to check a voucher's signature. All take the same vouchers
// in turn, on one processor.
func checks(ctx context.Context, set bench.Settings) ([]bench.Series, error) {
	const channels, each = 64, 4
	private, err := crypto.GenerateKey()
	if err != nil {
		return nil, err
	}
	b := bookOf(private, channels)
	check := func(name string, valid func(channel.Voucher) bool) bench.Contender {
		return bench.Contender{Name: name, Step: channels,
			Prepare: func(int) error { return b.fill(each) },
			Run: func(_ context.Context, n int) error {
				for i := range n {
					if !valid(b.vouchers[i%channels][i/channels%each]) {
						return errors.New("a right voucher is refused")
					}
				}
				return nil
			}}
	}
	against := func(public []byte) func(channel.Voucher) bool {
		return func(v channel.Voucher) bool {
			digest := b.domain.Digest(v.ChannelID, &v.Cumulative)
			return crypto.VerifySignature(public, digest[:], v.Signature[:64])
		}
	}
	return bench.Interleave(ctx, set, []bench.Contender{
		check("recover the signer, as a payee does", func(v channel.Voucher) bool { return verify(b, v) == nil }),
		check("known key, 65 bytes, parsed for each", against(crypto.FromECDSAPub(&private.PublicKey))),
		check("known key, 33 bytes, decompressed for each", against(crypto.CompressPubkey(&private.PublicKey))),
	})
}

func checksTable(series []bench.Series) bench.Table {
	t := bench.Table{Title: "Ways to check a voucher, its digest included, on one processor:",
		Head: []string{"", "checks a second", "time of a recovery"}}
	for _, s := range series {
		row := []string{s.Name, s.Rate().String(), ""}
		if s.Name != series[0].Name {
			row[2] = bench.Ratio(series[0], s).Times()
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// whyRecover says what a check against a known key would save of a payment that
// takes so many seconds of a processor.
func whyRecover(series []bench.Series, payment float64) string {
	recovery, known := 1/series[0].Rate().Median, 1/series[1].Rate().Median
	return fmt.Sprintf("A check against a key that is known already takes %.2f of the time of a recovery. A payment, one in flight, would take %.0f%% less of the "+
		"processors' time, and would not be settled for certain: such a check does not look at `v`, so that it accepts a voucher whose `v` is flipped, "+
		"which the contract refuses. To set `v` right before a voucher is kept or shown to anybody takes the recovery that was saved, and one in flight "+
		"every voucher is kept. So a payee recovers.", bench.Ratio(series[0], series[1]).Median, 100*(recovery-known)/payment)
}
