package main

import (
	"fmt"
	"math/big"
	"strings"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk"
	"github.com/gpupay/gpupay/sdk/units"
)

// gasFlags are what the provider spends on others, and what it keeps for settling.
type gasFlags struct{ sponsored *string }

func registerGas(flags *cli.Flags, c *sdk.ProviderConfig) gasFlags {
	flags.Text(&c.MinTransfer, "min-transfer", "GPUPAY_MIN_TRANSFER", "", "least that is worth a transaction, in units of the token: no top-up is sent and nothing settled of less; a tenth of --min-deposit if empty, 0 for no bound")
	flags.IntVar(&c.Limits.ReservedSettlements, "reserved-settlements", 0, "how many settlements the key's coin must pay for before anything is sent for a renter; 0 for the default, 20; negative for none")
	return gasFlags{flags.String("sponsored-gas", cli.Env("GPUPAY_SPONSORED_GAS", "0.01,0.1"),
		"native coin that what is sent for renters may cost a day: `for one payer,for all` ($GPUPAY_SPONSORED_GAS)")}
}

// budgets puts what the flags say into the limits.
func (g gasFlags) budgets(l *sdk.Limits) error {
	one, all, ok := strings.Cut(*g.sponsored, ",")
	var wei [2]*big.Int
	for i, coin := range []string{one, all} {
		amount, err := units.Parse(strings.TrimSpace(coin), 18)
		if err != nil || !ok {
			return fmt.Errorf("--sponsored-gas: %q is not two amounts of native coin such as 0.01,0.1", *g.sponsored)
		}
		wei[i] = amount.ToBig()
	}
	l.SponsoredGasPerPayer, l.SponsoredGas = wei[0], wei[1]
	return nil
}
