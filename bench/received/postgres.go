package received

import (
	"context"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/internal/pgtest"
)

const aboutServer = "The same over a PostgreSQL server on this machine, which shares the cores with the payers and the payee: its own work is " +
	"not in *cores busy*. *Three gateways* are three processes of this program, each with a third of the channels " +
	"(with one channel: one process), the payers of those, and its own handle of the store with its connections and commit loop. Their vouchers are " +
	"signed and handed to them before the clock runs; it runs from the word to begin, sent through a pipe, to the last process's answer, and their " +
	"heap objects and processors count as gpupay's do. What was kept is asked from a fourth process."

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
