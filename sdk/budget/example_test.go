package budget_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/gpupay/gpupay/sdk/budget"
	"github.com/gpupay/gpupay/sdk/route"
)

// A day's budget is 100 base units. A request that may cost 60 is reserved before it is sent, and a second one does not fit beside it,
// until the first is over and has cost 20.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gpupay-example-")
	check(err)
	defer os.RemoveAll(dir)
	books, err := budget.Open(ctx, filepath.Join(dir, "pool.db"))
	check(err)
	defer books.Close()
	noon := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	limits := budget.Limits{All: route.Base(100)}

	id, err := books.Reserve(ctx, noon, "ci", limits, route.Base(60))
	check(err)
	_, err = books.Reserve(ctx, noon, "ci", limits, route.Base(60))
	var over *budget.ExceededError
	fmt.Println(errors.As(err, &over), over.Left, over.Ends)
	check(books.Dispatch(ctx, id, "0xc1", 1)) // then the request is sent
	check(books.Done(ctx, id, route.Base(20)))
	_, err = books.Reserve(ctx, noon, "ci", limits, route.Base(60))
	fmt.Println(err)
	// Output:
	// true 40 2026-12-01 00:00:00 +0000 UTC
	// <nil>
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
