package store

import (
	"fmt"
	"sync"
	"testing"

	"github.com/gpupay/gpupay/internal/pgtest"
)

// BenchmarkUpdate is the store alone: one writer a channel, each waits for the
// fsync of its group.
func BenchmarkUpdate(b *testing.B) {
	for _, channels := range []int{1, 16, 256, 1024} {
		b.Run(fmt.Sprintf("sqlite/channels=%d", channels), func(b *testing.B) { benchmarkUpdate(b, newDB(b), channels) })
		b.Run(fmt.Sprintf("postgres/channels=%d", channels), func(b *testing.B) { benchmarkUpdate(b, openAt(b, pgtest.URL(b)), channels) })
	}
}

func benchmarkUpdate(b *testing.B, db *DB, channels int) {
	var wait sync.WaitGroup
	start := make(chan struct{})
	for c := range channels {
		s := stateOf(0)
		s.Terms.Salt[0], s.Terms.Salt[1] = byte(c), byte(c>>8)
		s.ID = s.Terms.ID()
		if _, err := db.Payee().Create(b.Context(), s); err != nil {
			b.Fatal(err)
		}
		wait.Go(func() {
			<-start
			for n := c; n < b.N; n += channels {
				if err := raise(db, s.ID, uint64(n+1)); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	b.ResetTimer()
	close(start)
	wait.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "vouchers/s")
}
