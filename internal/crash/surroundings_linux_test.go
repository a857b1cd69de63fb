package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/fleet"
)

// place is one provider with one renter that pays, and something that goes
// wrong around the provider.
type place struct {
	*world
	provider *process
	renter   *process
}

func newPlace(t *testing.T) *place {
	t.Helper()
	runtime.LockOSThread()
	w := &world{TB: t, config: config{bin: programs, renters: 1}, witness: newWitness(), begun: time.Now(),
		tally: make(map[string]map[string]int), count: make(map[string]int), fates: make(map[string]*fates)}
	w.ctx, w.abort = context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(w.abort)
	w.prepare()
	p := &place{world: w}
	t.Cleanup(func() {
		for _, each := range []*process{p.provider, p.renter} {
			if each != nil {
				_ = each.stop(syscall.SIGKILL)
				if t.Failed() {
					t.Log(each.output())
				}
			}
		}
	})
	return p
}

// serve starts the provider and waits until it serves.
func (p *place) serve() {
	p.Helper()
	var err error
	if p.provider, err = p.spawn.start(p.world.provider, "", p.providerArgs()...); err != nil {
		p.Fatal(err)
	}
	if err := p.provider.saw(p.ctx, "renting out"); err != nil {
		p.Fatal(err)
	}
}

// fails starts the provider where it cannot serve, and wants one line that says
// so.
func (p *place) fails(says string) {
	p.Helper()
	var err error
	if p.provider, err = p.spawn.start(p.world.provider, "", p.providerArgs()...); err != nil {
		p.Fatal(err)
	}
	select {
	case <-p.provider.done:
	case <-time.After(time.Minute):
		p.Fatal("it serves")
	}
	if last := lastLine(p.provider.output()); !strings.HasPrefix(last, "error: ") || !strings.Contains(last, says) {
		p.Errorf("it says %q and not %q", last, says)
	}
}

// rent starts the renter and waits for paid service.
func (p *place) rent() {
	p.Helper()
	var err error
	if p.renter, err = p.spawn.start(p.renters[0].program, "", p.renterArgs(&p.renters[0], false, "10")...); err != nil {
		p.Fatal(err)
	}
	p.until("a voucher", func() bool { return p.vouchers() >= 2 })
}

func (p *place) vouchers() (n int) {
	for _, t := range p.witness.snapshot() {
		n += t.vouchers
	}
	return n
}

func (p *place) until(what string, ok func() bool) {
	p.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			p.Fatalf("waited 60 s for %s", what)
		}
	}
}

// says waits for the provider's log.
func (p *place) says(text string) {
	p.Helper()
	p.until(fmt.Sprintf("the provider to say %q", text), func() bool { return strings.Contains(p.provider.output(), text) })
}

// recovered lets the renter end its rental and wants the books in order.
func (p *place) recovered() {
	p.Helper()
	if p.renter != nil {
		_ = p.renter.stop(syscall.SIGKILL)
	}
	p.finish(&p.renters[0])
	if err := p.provider.stop(syscall.SIGINT); err != nil {
		p.Error(err)
	}
	p.checkProvider()
	r := p.audit()
	if r.channels != 1 || r.settled != 1 || r.acknowledged == 0 {
		p.Errorf("%d channels, %d settled, %d vouchers acknowledged", r.channels, r.settled, r.acknowledged)
	}
	for _, line := range r.wrong {
		p.Error(line)
	}
}

// limitFiles keeps a process from making any file longer than a size, as a quota
// or a full disk would; it lifts the limit for a negative size.
func (p *place) limitFiles(size int64) {
	p.Helper()
	if err := fleet.LimitFiles(p.provider.cmd.Process.Pid, size); err != nil {
		p.Fatal(err)
	}
}

// TestFullDisk: nothing can be written any more. No voucher is acknowledged, the
// lease is suspended within its credit and stays so, and when there is space
// again everything goes on from what was written.
func TestFullDisk(t *testing.T) {
	p := newPlace(t)
	p.serve()
	p.rent()
	info, err := os.Stat(p.providerDB() + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	p.limitFiles(info.Size())
	p.says("the disk")
	before := p.vouchers()
	p.says("lease suspended") // unpaid and unrecorded service is bounded by the credit
	time.Sleep(3 * time.Second)
	if strings.Contains(p.provider.output(), "lease active") {
		t.Error("it is served again although nothing of it could be written")
	}
	if now := p.vouchers(); now != before {
		t.Errorf("%d vouchers were acknowledged with nowhere to put them", now-before)
	}
	_ = p.provider.stop(syscall.SIGKILL)
	p.checkProvider()
	p.serve()
	p.recovered()
}

// TestReadOnlyDatabase: the provider cannot write its file and says whose it
// must be.
func TestReadOnlyDatabase(t *testing.T) {
	p := newPlace(t)
	p.serve()
	p.rent()
	_ = p.provider.stop(syscall.SIGKILL)
	modes := map[string]os.FileMode{p.dir: 0o555, filepath.Dir(p.dir): 0o755, programs: 0o755}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		modes[p.providerDB()+suffix] = 0o444
	}
	for path, mode := range modes {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if os.Getuid() == 0 { // who may write whatever the modes say
		p.world.provider.uid = 65534
	}
	p.fails("writable by this user")
	p.world.provider.uid = 0
	for path := range modes {
		if path == p.dir || strings.HasPrefix(path, p.providerDB()) {
			if err := os.Chmod(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.serve()
	p.recovered()
}

// TestCorruptedLastPage: the provider notices before it serves anybody, and a
// backup brings everything back.
func TestCorruptedLastPage(t *testing.T) {
	p := newPlace(t)
	p.serve()
	p.rent()
	_ = p.renter.stop(syscall.SIGKILL)
	_ = p.provider.stop(syscall.SIGKILL)
	db, err := store.Open(t.Context(), p.providerDB()) // brings the -wal into the file
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	backup, err := os.ReadFile(p.providerDB())
	if err != nil {
		t.Fatal(err)
	}
	const page = 4096
	damaged := bytes.Clone(backup)
	noise := rand.New(rand.NewPCG(1, 1))
	for i := len(damaged) - page; i < len(damaged); i++ {
		damaged[i] = byte(noise.Uint32())
	}
	if err := os.WriteFile(p.providerDB(), damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	p.fails("restore it from a backup")
	if err := os.WriteFile(p.providerDB(), backup, 0o600); err != nil {
		t.Fatal(err)
	}
	p.serve()
	p.recovered()
}

// TestLockedDatabase: another program holds the lock. No voucher is
// acknowledged meanwhile, and the provider goes on when the lock is gone.
func TestLockedDatabase(t *testing.T) {
	p := newPlace(t)
	p.serve()
	p.rent()
	other, err := sqlx.Open("sqlite3", "file:"+p.providerDB()+"?_txlock=immediate&_busy_timeout=5000")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	tx, err := other.Beginx()
	if err != nil {
		t.Fatal(err)
	}
	p.until("the vouchers that were under way", func() bool {
		before := p.vouchers()
		time.Sleep(time.Second)
		return p.vouchers() == before
	})
	before := p.vouchers()
	p.says("another process holds the database locked: stop it")
	if now := p.vouchers(); now != before {
		t.Errorf("%d vouchers were acknowledged with nowhere to put them", now-before)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	p.recovered()
}
