package ledger_test

import (
	"math/big"
	"os"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/ledger"
)

// A settlement and the lease that it pays for, as a spreadsheet takes them. A program reads them with ledger.ReadFile.
func Example() {
	token, payer := common.HexToAddress("0x22"), common.HexToAddress("0xada")
	began := time.Date(2026, 1, 31, 23, 0, 0, 0, time.UTC)
	books := &ledger.Books{Decimals: map[common.Address]uint8{token: 6}, Entries: []ledger.Entry{
		{Kind: ledger.Lease, Time: began, Counterparty: payer, Detail: "ended", Nanos: 3_600_000_000_001, Amount: *uint256.NewInt(2_500_001), Token: token},
		{Kind: ledger.Settlement, Time: began.Add(2 * time.Hour), Counterparty: payer, Detail: "settle", Amount: *uint256.NewInt(2_500_001), Token: token, Gas: big.NewInt(21)},
	}}
	january := books.Between(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC))
	if err := january.WriteCSV(os.Stdout); err != nil {
		panic(err)
	}
	// Output:
	// kind,time,counterparty,channel,transaction,block,lease,detail,gpu_seconds,amount_base_units,amount,token,gas_wei
	// lease,2026-01-31T23:00:00Z,0x0000000000000000000000000000000000000aDA,,,,,ended,3600.000000001,2500001,2.500001,0x0000000000000000000000000000000000000022,
}
