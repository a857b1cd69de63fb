package route_test

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/route"
)

// Two servers of one model: the cheap one turns out to be slow. Forty requests later most of them go where an answer costs less, the
// time of who waits for it included.
func Example() {
	router, err := route.New(route.Config{Rand: rand.New(rand.NewPCG(1, 2))})
	must(err)
	// 2.40 and 1.20 dollars for an hour of a GPU that 32 requests share, in base units of a token of six decimals.
	fast, err := route.SlotSecond(*uint256.NewInt(2_400_000), time.Hour, 1, 32)
	must(err)
	slow, err := route.SlotSecond(*uint256.NewInt(1_200_000), time.Hour, 1, 32)
	must(err)
	must(router.Set([]route.Endpoint{
		{ID: "https://fast.example", Model: "qwen3-8b", Price: route.Price{PerSlotSecond: fast}},
		{ID: "https://slow.example", Model: "qwen3-8b", Price: route.Price{PerSlotSecond: slow}},
	}))
	perToken := map[string]time.Duration{"https://fast.example": 10 * time.Millisecond, "https://slow.example": 60 * time.Millisecond}

	request := route.Request{Model: "qwen3-8b", InTokens: 500, OutTokens: 200, MaxTokens: 1000, Budget: route.Base(20_000_000)}
	now := time.Duration(0) // by a monotonic clock of the caller's
	times := make(map[string]int)
	for range 40 {
		choice, err := router.Choose(now, request)
		must(err)
		// The caller reserves choice.Reserve, sends the request, and measures.
		took := 200*time.Millisecond + 200*perToken[choice.Endpoint.ID]
		now += took
		router.Done(now, choice, route.Result{Outcome: route.Done, FirstToken: 200 * time.Millisecond, Total: took, OutTokens: 200})
		times[choice.Endpoint.ID]++
	}
	fmt.Println("most of them fast:", times["https://fast.example"] > 30)
	for _, row := range router.Table(now, request) {
		fmt.Printf("%s at %s per slot-second: pay %.0f, wait %.0f, risk %.0f base units\n",
			row.Endpoint.ID, row.Endpoint.Price.PerSlotSecond, row.Cost.Pay.BaseUnits(), row.Cost.Wait.BaseUnits(), row.Cost.Risk.BaseUnits())
	}
	request.Budget = route.Base(1)
	_, err = router.Choose(now, request)
	fmt.Println(err)
	// Output:
	// most of them fast: true
	// https://fast.example at 20.833333334 per slot-second: pay 46, wait 884, risk 39 base units
	// https://slow.example at 10.416666667 per slot-second: pay 128, wait 4904, risk 88 base units
	// no endpoint may take the request for model "qwen3-8b": left out are 2 by budget
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
