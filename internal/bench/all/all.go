// Package all lists the sections of docs/performance.md in their order.
package all

import (
	"github.com/gpupay/gpupay/internal/bench"
	"github.com/gpupay/gpupay/internal/bench/coldbuild"
	"github.com/gpupay/gpupay/internal/bench/leases"
	"github.com/gpupay/gpupay/internal/bench/loopback"
	"github.com/gpupay/gpupay/internal/bench/metercost"
	"github.com/gpupay/gpupay/internal/bench/onchain"
	"github.com/gpupay/gpupay/internal/bench/policy"
	"github.com/gpupay/gpupay/internal/bench/received"
	"github.com/gpupay/gpupay/internal/bench/transport"
)

// Sections returns all of them.
func Sections() []bench.Section {
	return []bench.Section{
		received.SQLite(),
		received.Postgres(),
		loopback.Section{},
		transport.Section{},
		leases.Section{},
		metercost.Section{},
		onchain.Section{},
		policy.Section{},
		coldbuild.Section{},
	}
}
