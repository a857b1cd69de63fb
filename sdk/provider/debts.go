package provider

import (
	"context"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/payercredit"
)

// newDebts counts what payers owe on all contracts.
func (p *Server) newDebts() *payercredit.Debts {
	return &payercredit.Debts{DB: p.db, Store: p.store, Payee: p.payee, Accounts: payercredit.New(p.leastRow(p.escrow)), Log: p.config.Log,
		Escrow: p.escrow, Contracts: p.settlement.contracts, Row: p.leastRow, Credit: p.config.Terms.Credit, Tick: p.config.Metering.Tick, Kept: p.config.Terms.DebtKept, Decimals: p.token.Decimals, MayOpen: p.leases.Services.CanOpen}
}

// Forgive writes off what a payer owes on channels that are closed, or, with x402, have nothing left, where no voucher
// can pay it any more: its credit is whole again, at every gateway of the database.
// What it owes on other channels stays owed. It returns what was written off, in base
// units: nothing the second time. Debts that nobody forgives are written off after
// Config.Terms.DebtKept.
func (p *Server) Forgive(ctx context.Context, payer common.Address) (sum uint256.Int, err error) {
	return p.debts.Forgive(ctx, payer)
}
