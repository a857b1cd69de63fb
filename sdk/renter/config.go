package renter

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Config says who rents, with what money, and how much of it. Key, RPC (or Chain.Backend), Token, Database and Caps are needed; the zero
// value of every other field is its default.
type Config struct {
	// Key is the payer's: it deposits, signs vouchers and gets refunds. One key belongs to one running Client: two, also with a
	// database each, replace each other's approvals and take each other's nonces, so that deposits revert, and each counts only its
	// own channels under its Caps.
	Key channel.Signer
	// RPC is the JSON-RPC endpoint: http, https, ws or wss; several of one chain with commas between them.
	RPC string
	// Token is what to pay in; all caps are in its units.
	Token common.Address
	// Database is the path of the SQLite file, which remembers where the deposits are. It is made if there is none.
	Database string
	// Caps bound what is put at stake. Each must be said.
	Caps wallet.Caps

	// Escrow is the one contract to trust. If zero, those are that the deterministic factory deployed (chain.DeployedAt with salt
	// zero), with this project's code to the byte: an instance of another salt, or of a chain without the factory, must be named.
	Escrow common.Address
	// AllowUnknownEscrow trusts any contract that a provider names: it can keep the whole deposit.
	AllowUnknownEscrow bool
	// MaxCredit refuses an offer that lets more GPU time be billed unseen; 1 h if zero, at least 1 s.
	MaxCredit time.Duration
	// Relay sends what this renter signed when it has no native coin; may be nil.
	Relay Relay
	// Chain is how the chain is looked at, and what a transaction may cost.
	Chain wallet.Chain
	// Tolerance is by how much a provider's clock may run ahead of ours; 2 s if zero, not negative.
	Tolerance time.Duration
	// Patience is how long to go without a usage record, or with a demand that none explains; 2 min if zero, not negative.
	Patience time.Duration

	// HTTP is http.DefaultClient if nil; its timeout is not used.
	HTTP *http.Client
	// Clock is metering.System if nil.
	Clock metering.Clock
	// Now is time.Now if nil.
	Now func() time.Time
	// Log is slog.Default() if nil.
	Log *slog.Logger
}

// wallet is what of it is the wallet's.
func (c Config) wallet() wallet.Config {
	return wallet.Config{
		Key: c.Key, RPC: c.RPC, Token: c.Token, Database: c.Database, Caps: c.Caps, Chain: c.Chain, Verify: c.verify,
		Tolerance: c.Tolerance, Patience: c.Patience, HTTP: c.HTTP, Clock: c.Clock, Now: c.Now, Log: c.Log,
	}
}

// verify checks that the escrow to trust, if one is named, is on the chain.
func (c Config) verify(ctx context.Context, backend chain.Backend) error {
	if c.Escrow == (common.Address{}) {
		return nil
	}
	_, err := chain.NewEscrow(ctx, backend, c.Escrow)
	return err
}

// Relay sends what a renter without native coin has signed. A tower.Client is one;
// anybody with a little coin can run it, and it can take nothing.
type Relay interface {
	// RequestClose starts the grace period of a channel for its payer.
	RequestClose(ctx context.Context, request wire.LeaveRequest) error
	// Withdraw pays the payer of a channel after its grace period.
	Withdraw(ctx context.Context, terms channel.Terms) error
}
