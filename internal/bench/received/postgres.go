package received

import (
	"context"

	"github.com/gpupay/gpupay/internal/bench"
	"github.com/gpupay/gpupay/internal/pgtest"
)

const aboutServer = "The same over a PostgreSQL server on this machine, which shares the cores with the payers and the payee: its own work is " +
	"not in *cores busy*. *Three gateways* are three handles of the store on one database, each with its own connections and commit loop, in " +
	"one process; to the server they are three processes. A channel's vouchers all reach one of them."

// Server is Postgres, which starts a server of its own.
type Server struct{ Section }

// Postgres measures the store that several gateways share, with one of them and
// with three.
func Postgres() Server {
	return Server{Section{name: "postgres", title: "Payments received, PostgreSQL", three: true, about: []string{aboutServer}}}
}

// Measure starts the server and stops it.
func (s Server) Measure(ctx context.Context, set bench.Settings) (bench.Report, error) {
	server, err := pgtest.Start()
	if err != nil {
		return bench.Report{}, err
	}
	defer server.Stop()
	s.address = func(string) (string, error) { return server.Schema() }
	return s.Section.Measure(ctx, set)
}
