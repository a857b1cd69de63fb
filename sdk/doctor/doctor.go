// Package doctor looks at what a provider needs before it serves, and says of each part that it is well or how to mend it. It asks the
// packages that refuse to start, settle or be paid where something is wrong, changes nothing but a file of its own that it deletes, and
// moves no money.
package doctor

import (
	"context"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
)

// Finding is what was seen of one part.
type Finding struct {
	Part string // such as "escrow"
	Seen string // what is there, where it is well
	Mend string // what is wrong and what to do; empty: it is well
}

// OK reports that there is nothing to mend.
func (f Finding) OK() bool { return f.Mend == "" }

// String is one line, in which nothing that a server said steers a terminal.
func (f Finding) String() string {
	mark, says := "ok  ", f.Seen
	if !f.OK() {
		mark, says = "MEND", f.Mend
	}
	return fmt.Sprintf("%s  %-9s %s", mark, f.Part, redact.Text(strings.Join(strings.Fields(says), " ")))
}

// Config is what is looked at. What is empty and optional is not.
type Config struct {
	// RPC are the URLs of the chain's endpoints, with commas between them; each is looked at by itself.
	RPC string
	// ChainID refuses any other chain; any if zero.
	ChainID uint64
	// Escrow and Token are the contracts.
	Escrow, Token common.Address
	// X402 asks also what stock clients of x402 need.
	X402 bool
	// Payee is the address of the provider's key, which pays for gas; optional.
	Payee common.Address
	// Settlements is for how many settlements of one channel the key must have coin, at twice the present price of gas; 20 if zero.
	Settlements int
	// MinGrace is the least grace period of the escrow; chain.GraceFloor if zero.
	MinGrace time.Duration
	// ClockTolerance is the most that this host's clock may be off the chain's; 2 min if zero.
	ClockTolerance time.Duration

	// Database is the path of a file, or a postgres:// URL; optional.
	Database string
	// Open opens the source of GPUs; nil: GPUs are elsewhere.
	Open func() (metering.Source, error)
	// Upstream is the URL of the inference server; optional.
	Upstream string
	// PublicURL is where clients reach the provider; optional. There its certificate is looked at, and its offer.
	PublicURL string
	// Roots are the authorities of certificates; the system's if nil.
	Roots *x509.CertPool
	// Prices are what a GPU costs for an hour, by class, in units of the token; "" names the only class.
	Prices map[string]string
	// Payout is the cold address; optional.
	Payout common.Address
	// Timeout bounds each look; 15 s if zero.
	Timeout time.Duration

	decimals uint8 // of the token
	decimal  bool  // they are known
}

func (c Config) withDefaults() Config {
	if c.Settlements == 0 {
		c.Settlements = 20
	}
	if c.ClockTolerance == 0 {
		c.ClockTolerance = 2 * time.Minute
	}
	if c.Timeout == 0 {
		c.Timeout = 15 * time.Second
	}
	return c
}

// Check looks at everything, each part whatever became of those before it. What needs a chain, and finds none, has no finding of its own.
func Check(ctx context.Context, config Config) (findings []Finding) {
	c := config.withDefaults()
	look := func(check func(context.Context) []Finding) {
		ctx, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		findings = append(findings, check(ctx)...)
	}
	look(c.endpoints)
	backend, err := chain.Connect(ctx, c.RPC, nil)
	if err == nil {
		for _, check := range []func(context.Context, chain.Backend) []Finding{c.escrow, c.token, c.coin, c.payout} {
			look(func(ctx context.Context) []Finding { return check(ctx, backend) })
		}
	}
	look(c.database)
	look(c.gpus)
	look(c.upstream)
	look(c.certificate)
	look(c.offer)
	return findings
}

// Well reports that nothing is to be mended.
func Well(findings []Finding) bool {
	for _, f := range findings {
		if !f.OK() {
			return false
		}
	}
	return true
}

func ok(part, seen string, values ...any) []Finding {
	return []Finding{{Part: part, Seen: fmt.Sprintf(seen, values...)}}
}

func mend(part, what string, values ...any) []Finding {
	return []Finding{{Part: part, Mend: fmt.Sprintf(what, values...)}}
}
