package renter

import (
	"context"
	"log/slog"
	"math/big"
	"net/http"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/wallet"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Config says who rents, with what money, and how much of it. Key, RPC
// (or Backend), Token, Database and Caps are needed; the zero value of every
// other field is its default.
type Config struct {
	// Key is the payer's: it deposits, signs vouchers and gets refunds. One key belongs to one running Client: two, also with a
	// database each, replace each other's approvals and take each other's nonces, so that deposits revert, and each counts only its
	// own channels under its Caps.
	Key      channel.Signer
	RPC      string         // JSON-RPC endpoint: http, https, ws or wss; several of one chain with commas between them
	Token    common.Address // what to pay in; all caps are in its units
	Database string         // path of the SQLite file; it remembers where the deposits are
	Caps     wallet.Caps

	ChainID uint64 // refuse an endpoint that serves another chain; not checked if zero

	// Escrow is the one contract to trust. If zero, those are that the
	// deterministic factory deployed (chain.DeployedAt with salt zero), with this
	// project's code to the byte: an instance of another salt, or of a chain
	// without the factory, must be named.
	Escrow             common.Address
	AllowUnknownEscrow bool          // trust any contract that a provider names: it can keep the whole deposit
	MaxGrace           time.Duration // refuse an escrow that takes longer to leave; 7 days if zero
	MaxCredit          time.Duration // refuse an offer that lets more GPU time be billed unseen; 1 h if zero, at least 1 s
	Relay              Relay         // sends what this renter signed when it has no native coin; may be nil

	Tolerance     time.Duration // by which a provider's clock may run ahead of ours; 2 s if zero
	Patience      time.Duration // without a usage record, or with a demand that none explains; 2 min if zero
	Confirmations uint64        // before a transaction counts; 1 if zero
	Poll          time.Duration // between looks at the chain; 2 s if zero
	ClockOff      time.Duration // most that our clock and the chain's may differ; 2 min if zero
	// The most that a transaction of ours offers for a unit of gas, in wei;
	// chain.DefaultMaxFee of the chain if nil (500 gwei on most).
	MaxFee *big.Int

	HTTP    *http.Client // http.DefaultClient if nil; its timeout is not used
	Clock   metering.Clock
	Now     func() time.Time
	Log     *slog.Logger
	Backend chain.Backend // instead of RPC: a client that is already connected
}

// wallet is what of it is the wallet's.
func (c Config) wallet() wallet.Config {
	return wallet.Config{
		Key: c.Key, RPC: c.RPC, Backend: c.Backend, Token: c.Token, Database: c.Database, Caps: c.Caps, ChainID: c.ChainID,
		Tolerance: c.Tolerance, Patience: c.Patience, Confirmations: c.Confirmations, Poll: c.Poll, ClockOff: c.ClockOff,
		MaxGrace: c.MaxGrace, MaxFee: c.MaxFee, HTTP: c.HTTP, Clock: c.Clock, Now: c.Now, Log: c.Log, Verify: c.verify,
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
