package settle_test

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/sqlfault"
	"github.com/gpupay/gpupay/sdk/internal/rig"
)

// TestNoFaultOfTheDatabaseIsSilent: each place that sends a statement to the payee's database is told once that the disk failed, while it settles. Settle says
// so, or the log does; tried again it has what was owed paid, once.
func TestNoFaultOfTheDatabaseIsSilent(t *testing.T) {
	disk := sqlfault.At(t, filepath.Dir(t.TempDir()))
	k, log := newTill(t), &rig.Log{}
	text := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	k.Sender.Log, k.Settler.Log = text, text
	t.Cleanup(func() {
		if t.Failed() && testing.Verbose() {
			fmt.Println(log)
		}
	})
	var all []channel.Terms
	for i := range byte(3) {
		all = append(all, k.Open(i, 1000))
	}
	for round := range uint64(3) {
		for _, terms := range all {
			k.Accept(terms, 100*(round+1))
		}
		disk.Arm(true)
		var both sync.WaitGroup
		for range 2 { // each waits for what the other one settles
			both.Go(func() {
				for range 300 {
					err := k.Settler.Settle(t.Context())
					if err == nil {
						return
					}
					fmt.Fprintln(log, "returned:", err)
					time.Sleep(20 * time.Millisecond)
				}
			})
		}
		both.Wait()
		disk.Arm(false)
		k.Balance(300 * (round + 1))
	}
	for _, terms := range all {
		if s := k.State(terms); !is(s.Settled, 300) {
			t.Errorf("channel %s: settled %s", terms.ID(), s.Settled.Dec())
		}
	}
	disk.Said(t, log.String(), nil)
}
