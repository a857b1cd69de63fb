package main

import (
	"context"
	"crypto/ecdsa"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/internal/fault"
)

type config struct {
	kills, renters int
	seed           uint64
	dir, bin       string // of databases, of programs that are built already
	verbose        bool
}

const (
	purse      = 1_000_000_000_000 // base units each renter begins with
	randomStep = "random moment"
	patience   = 10 * time.Second // for a step to be reached
)

var quiet = log.New(io.Discard, "", 0)

// world is a chain, a provider and its renters, and what happened to them.
type world struct {
	testing.TB
	config
	ctx     context.Context
	abort   context.CancelFunc
	chain   *chaintest.Chain
	spawn   spawner
	witness *witness
	begun   time.Time

	provider program
	address  string // where the provider serves
	renters  []payer
	fates    map[string]*fates

	mu    sync.Mutex
	tally map[string]map[string]int // side, step: kills
	count map[string]int            // side: kills
	gone  int                       // times that a renter gave up by itself and was run again
	wrong []string
}

type payer struct {
	program
	name, db string
	coin     bool
	url      string // of its proxy
}

// fates choose when a process is to die: at a random moment and at the next
// step, in turn.
type fates struct {
	mu    sync.Mutex
	rng   *rand.Rand
	steps []fault.Step
	turn  int
}

// next returns a step, or an empty one and the moment.
func (f *fates) next() (step string, after time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.turn++
	if f.turn%2 == 1 {
		return "", 50*time.Millisecond + time.Duration(f.rng.Int64N(int64(2500*time.Millisecond)))
	}
	name := f.steps[(f.turn/2-1)%len(f.steps)]
	if often := strings.HasPrefix(string(name), "record") || strings.HasPrefix(string(name), "voucher"); often {
		return fmt.Sprintf("%s#%d", name, 1+f.rng.IntN(2)), patience
	}
	return string(name), patience
}

// crash runs everything and returns the books.
func crash(t testing.TB, c config) *report {
	t.Helper()
	w := &world{TB: t, config: c, witness: newWitness(), begun: time.Now(),
		tally: make(map[string]map[string]int), count: make(map[string]int), fates: make(map[string]*fates)}
	w.ctx, w.abort = context.WithCancel(t.Context())
	w.prepare()
	var wait sync.WaitGroup
	ended := make(chan struct{})
	wait.Add(1)
	go func() { defer wait.Done(); w.lifeOfProvider(ended) }()
	var rentals sync.WaitGroup
	for i := range w.renters {
		rentals.Add(1)
		go func() { defer rentals.Done(); w.lifeOfRenter(&w.renters[i]) }()
	}
	rentals.Wait()
	close(ended)
	wait.Wait()
	return w.audit()
}

func (w *world) prepare() {
	w.Helper()
	if w.dir == "" {
		w.dir = w.TempDir()
	} else if err := os.MkdirAll(w.dir, 0o700); err != nil {
		w.Fatal(err)
	}
	if w.bin == "" {
		w.bin = w.dir
		build(w, w.bin)
	}
	w.spawn = newSpawner(w)
	w.chain = chaintest.Anvil(w)
	w.address = freeAddress(w)
	w.provider = program{path: filepath.Join(w.bin, "gpupay"), verb: "serve", key: w.chain.Keys[0], log: filepath.Join(w.dir, "provider.log")}
	w.fates["provider"] = w.fate(0, fault.Provider())
	w.fates["gasless renter"] = w.fate(1, fault.Renter(false))
	w.fates["renter with coin"] = w.fate(2, fault.Renter(true))
	for i := range w.config.renters {
		w.addRenter(i)
	}
	// Blocks come each second, as on a real chain: what is broadcast is not mined yet.
	w.chain.Automine(w, false)
	w.chain.RPC(w, nil, "evm_setIntervalMining", 1)
}

func (w *world) fate(stream uint64, steps []fault.Step) *fates {
	return &fates{rng: rand.New(rand.NewPCG(w.seed, stream)), steps: steps}
}

func (w *world) addRenter(i int) {
	handler, err := w.witness.proxy("http://" + w.address)
	if err != nil {
		w.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = quiet
	server.Start()
	w.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	name := fmt.Sprintf("renter%d", i)
	r := payer{name: name, db: filepath.Join(w.dir, name+".db"), coin: i%2 == 1, url: server.URL,
		program: program{path: filepath.Join(w.bin, "gpupay"), verb: "rent", key: renterKey(w, i), log: filepath.Join(w.dir, name+".log")}}
	w.chain.Mint(w, addressOf(r.key), purse)
	if r.coin {
		w.chain.RPC(w, nil, "anvil_setBalance", addressOf(r.key), "0x8ac7230489e80000")
	}
	w.renters = append(w.renters, r)
}

func renterKey(t testing.TB, i int) *ecdsa.PrivateKey {
	key, err := crypto.ToECDSA(crypto.Keccak256([]byte(fmt.Sprintf("crash renter %d", i))))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func addressOf(key *ecdsa.PrivateKey) common.Address { return crypto.PubkeyToAddress(key.PublicKey) }

// freeAddress is one that a provider can come back to after it was killed.
func freeAddress(t testing.TB) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (r *payer) side() string {
	if r.coin {
		return "renter with coin"
	}
	return "gasless renter"
}

// over reports whether everybody was killed often enough.
func (w *world) over() bool {
	return w.ctx.Err() != nil || (w.enough("provider") && w.enough("renter"))
}

func (w *world) enough(side string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count[side] >= w.kills
}

func (w *world) kill(side, step string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	total := "renter"
	if side == "provider" {
		total = side
	}
	w.count[total]++
	if w.tally[side] == nil {
		w.tally[side] = make(map[string]int)
	}
	w.tally[side][step]++
	if w.verbose {
		fmt.Fprintf(os.Stderr, "%7.1f s  %-17s %s\n", time.Since(w.begun).Seconds(), side, step)
	}
}

func (w *world) fault(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

// live runs one process until its fate or its end, and reports whether it was
// killed.
func (w *world) live(p *process, side, step string, after time.Duration) bool {
	timer := time.NewTimer(after)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		step = randomStep
		_ = p.stop(syscall.SIGKILL)
	case <-w.ctx.Done():
		_ = p.stop(syscall.SIGKILL)
		return false
	}
	if !p.killed() {
		return false
	}
	name, _, _ := strings.Cut(step, "#")
	w.kill(side, name)
	return true
}

// lifeOfProvider kills a provider, starts it again, and so on, and lets it live
// until the renters have ended. One that ends by itself ends everything.
func (w *world) lifeOfProvider(ended <-chan struct{}) {
	defer w.abort()
	for !w.over() && !w.enough("provider") {
		step, after := w.fates["provider"].next()
		p, err := w.spawn.start(w.provider, step, w.providerArgs()...)
		if err != nil {
			w.fault("provider: %v", err)
			return
		}
		if !w.live(p, "provider", step, after) && w.ctx.Err() == nil {
			w.fault("the provider ended by itself (%s): %s", p.cmd.ProcessState, lastLine(p.output()))
			return // it will not do better the next time
		}
		w.checkProvider()
	}
	p, err := w.spawn.start(w.provider, "", w.providerArgs()...)
	if err != nil {
		w.fault("provider: %v", err)
		return
	}
	select {
	case <-ended:
	case <-p.done:
		w.fault("the provider ended by itself (%s): %s", p.cmd.ProcessState, lastLine(p.output()))
	}
	_ = p.stop(syscall.SIGINT)
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		w.fault("the provider did not end well (%s): %s", p.cmd.ProcessState, lastLine(p.output()))
	}
}

func (w *world) providerDB() string { return filepath.Join(w.dir, "provider.db") }

func (w *world) providerArgs() []string {
	return []string{"--listen", w.address, "--admin", "", "--gpu", fmt.Sprintf("sim:%d", len(w.renters)), "--rpc", w.chain.URL,
		"--escrow", w.chain.Escrow.Hex(), "--token", w.chain.Token.Hex(), "--db", w.providerDB(), "--price", "3600.00", "--min-deposit", "1",
		"--record-every", "1s", "--credit", "6s", "--settle-every", "300ms", "--settle-age", "500ms", "--poll", "300ms",
		"--sponsored-gas", "1,10"} // so few renters do in minutes what is bounded for a day
}

func (w *world) lifeOfRenter(r *payer) {
	for !w.over() {
		step, after := "", time.Hour
		if !w.enough("renter") {
			step, after = w.fates[r.side()].next()
		}
		open := w.unfinished(r) > 0
		p, err := w.spawn.start(r.program, step, w.renterArgs(r, open, "0.08")...)
		if err != nil {
			w.fault("%s: %v", r.name, err)
			return
		}
		if w.live(p, r.side(), step, after) {
			w.checkRenter(r)
			continue
		}
		if p.cmd.ProcessState.ExitCode() != 0 { // the provider is gone, say: run it again, as its user would
			w.mu.Lock()
			w.gone++
			w.mu.Unlock()
			time.Sleep(200 * time.Millisecond)
		}
	}
	w.finish(r)
}

// finish lets a renter end what it began, undisturbed.
func (w *world) finish(r *payer) {
	var last string
	for range 30 {
		if w.ctx.Err() != nil || w.unfinished(r) == 0 {
			return
		}
		p, err := w.spawn.start(r.program, "", w.renterArgs(r, true, "0.02")...)
		if err != nil {
			w.fault("%s: %v", r.name, err)
			return
		}
		<-p.done
		if last = lastLine(p.output()); p.cmd.ProcessState.ExitCode() != 0 {
			time.Sleep(time.Second)
		}
	}
	w.fault("%s cannot end its rental: %s", r.name, last)
}

func (w *world) renterArgs(r *payer, resume bool, minutes string) []string {
	args := []string{"--provider", r.url, "--rpc", w.chain.URL, "--escrow", w.chain.Escrow.Hex(), "--token", w.chain.Token.Hex(), "--db", r.db,
		"--max-price", "3600", "--budget", "1000000", "--max-per-day", "1000000", "--max-per-provider", "1000000",
		"--deposit", "8", "--top-up", "8", "--pay-every", "500ms", "--poll", "300ms", "--minutes", minutes}
	if resume {
		args = append(args, "--resume")
	}
	return args
}

func lastLine(out string) string {
	lines := strings.Split(strings.TrimSpace(out), "\n")
	return lines[len(lines)-1]
}

// autopsy opens a copy of a dead process's database: the next process must find
// the file as the dead one left it, not as we repaired it.
func (w *world) autopsy(path string, look func(db *store.DB) error) error {
	dir, err := os.MkdirTemp(w.dir, "autopsy-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	copied := filepath.Join(dir, "copy.db")
	for _, suffix := range []string{"", "-wal"} {
		raw, err := os.ReadFile(path + suffix)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(copied+suffix, raw, 0o600)
		}
		if err != nil {
			return err
		}
	}
	db, err := store.Open(w.ctx, copied)
	if err != nil {
		return err
	}
	return errors.Join(look(db), db.Close())
}

// unfinished counts the rentals that a renter has to go on with.
func (w *world) unfinished(r *payer) (n int) {
	err := w.autopsy(r.db, func(db *store.DB) error {
		var tables int
		if err := db.View().Get(&tables, `SELECT count(*) FROM sqlite_master WHERE name = 'rentals'`); err != nil || tables == 0 {
			return err
		}
		return db.View().Get(&n, `SELECT count(*) FROM rentals WHERE state NOT IN ('finished', 'closed')`)
	})
	if err != nil && w.ctx.Err() == nil {
		w.fault("%s: its database: %v", r.name, err)
	}
	return n
}

// checkProvider looks at what a killed provider left on its disk: every voucher
// that it acknowledged is there.
func (w *world) checkProvider() {
	seen := w.witness.snapshot()
	err := w.autopsy(w.providerDB(), func(db *store.DB) error {
		for id, t := range seen {
			if t.acknowledged.IsZero() {
				continue
			}
			s, err := db.Payee().Load(w.ctx, id)
			if err != nil || s.Accepted.Lt(&t.acknowledged) {
				w.fault("lost: channel %s: %s was acknowledged, %s is on disk (%v)", id, t.acknowledged.Dec(), s.Accepted.Dec(), err)
			}
		}
		return nil
	})
	if err != nil && w.ctx.Err() == nil {
		w.fault("the provider's database: %v", err)
	}
}

// checkRenter does the same for a renter: it knows every voucher that it let
// out.
func (w *world) checkRenter(r *payer) {
	seen := w.witness.snapshot()
	err := w.autopsy(r.db, func(db *store.DB) error {
		known, err := db.Payer().List(w.ctx)
		for _, s := range known {
			if t := seen[s.ID]; s.Signed.Lt(&t.sent) {
				w.fault("%s forgot a voucher: channel %s: %s was sent, %s is on disk", r.name, s.ID, t.sent.Dec(), s.Signed.Dec())
			}
		}
		return err
	})
	if err != nil && w.ctx.Err() == nil {
		w.fault("%s: its database: %v", r.name, err)
	}
}
