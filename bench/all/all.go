// Package all lists the sections of docs/performance.md in their order.
package all

import (
	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/bench/leases"
	"github.com/gpupay/gpupay/bench/loopback"
	"github.com/gpupay/gpupay/bench/received"
)

// Sections returns all of them.
func Sections() []bench.Section {
	return []bench.Section{
		received.SQLite(),
		received.Postgres(),
		loopback.Section{},
		leases.Section{},
	}
}
