package fund_test

import (
	"context"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/fund"
)

// A program of this machine shows a person where to send the dollars that it pays with.
func Example() {
	wallet := fund.Wallet{
		Address: common.HexToAddress("0x70997970C51812dc3A010C7d01b50e0d17dc79C8"), ChainID: big.NewInt(8453),
		Token: common.HexToAddress("0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"), Symbol: "USDC", Decimals: 6,
		Balance: func(context.Context) (uint256.Int, error) { return *uint256.NewInt(2_500_000), nil },
	}
	fmt.Println(wallet.URI()) // wallet.WriteCode(os.Stdout) draws it for a phone
	page := httptest.NewServer(wallet.Handler())
	defer page.Close()
	res, err := http.Get(page.URL + "/state") // what the page at / is told
	if err != nil {
		panic(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	fmt.Print(string(text))
	// Output:
	// ethereum:0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913@8453/transfer?address=0x70997970C51812dc3A010C7d01b50e0d17dc79C8
	// {"address":"0x70997970C51812dc3A010C7d01b50e0d17dc79C8","balance":"2.50"}
}
