package nemesis

import (
	"bytes"
	"crypto/ecdsa"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/fleet"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/x402/x402client"
)

// programs is how many renters are the example program, with a database each.
const programs = 2

// purse is what each of them begins with, in base units.
const purse = 100_000_000

// user is who runs the renter's program, again where it has ended.
type user struct {
	name, database string
	key            *ecdsa.PrivateKey
	gateway        *gateway
	channels       int      // that it had, in the end
	ends           []string // how it ended, the last few times
}

func (w *world) newUser(n int) *user {
	key, err := crypto.GenerateKey()
	if err != nil {
		w.Fatal(err)
	}
	u := &user{name: fmt.Sprintf("program %d", n), key: key, gateway: w.gateways[n%len(w.gateways)], database: filepath.Join(w.TempDir(), "renter.db")}
	w.mint.Lock()
	defer w.mint.Unlock()
	w.chain.Mint(w.T, u.address(), purse)
	return u
}

func (u *user) address() common.Address { return crypto.PubkeyToAddress(u.key.PublicKey) }

// livePrograms rents again and again with the program, as somebody new each time: what
// one rental may still owe is not the next one's affair.
func (w *world) livePrograms(n int, over <-chan struct{}) {
	rng := rand.New(rand.NewPCG(w.seed, uint64(200+n)))
	for {
		u := w.newUser(n)
		w.mu.Lock()
		w.users = append(w.users, u)
		w.mu.Unlock()
		u.live(w, rng, over)
		select {
		case <-over:
			return
		default:
		}
	}
}

// live is one rental, whose program is killed and stopped, until it has ended. When
// the nemesis is done it is ended at once.
func (u *user) live(w *world, rng *rand.Rand, over <-chan struct{}) {
	for {
		u.run(w, rng, "0.2", over)
		select {
		case <-over:
			w.comes(u.name+" ends its rental", func() (bool, string) {
				if u.unfinished(w) == 0 {
					return true, ""
				}
				u.run(w, nil, "0.01", nil)
				return false, strings.Join(u.ends, "; ")
			})
			return
		case <-time.After(100 * time.Millisecond):
		}
		if u.unfinished(w) == 0 {
			return
		}
	}
}

// run is one life of the program.
func (u *user) run(w *world, rng *rand.Rand, minutes string, over <-chan struct{}) {
	var out bytes.Buffer
	args := []string{"--provider", u.gateway.url(), "--rpc", w.chain.URL, "--escrow", w.chain.Escrow.Hex(), "--token", w.chain.Token.Hex(),
		"--db", u.database, "--max-price", "4", "--budget", "100", "--max-per-day", "100", "--max-per-provider", "100", "--deposit", "0.1", "--top-up", "0.1",
		"--pay-every", "500ms", "--poll", "500ms", "--minutes", minutes}
	if u.unfinished(w) > 0 {
		args = append(args, "--resume")
	}
	cmd := exec.CommandContext(w.ctx, fleet.Program("gpupay"), append([]string{"rent"}, args...)...)
	cmd.Env = append(os.Environ(), "GPUPAY_KEY="+hex.EncodeToString(crypto.FromECDSA(u.key)))
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		w.breaks("%s: %v", u.name, err)
		return
	}
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	if rng != nil {
		u.trouble(rng, cmd.Process, done, over)
	}
	<-done
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	u.ends = append(u.ends[max(0, len(u.ends)-3):], fmt.Sprintf("%s: %s", cmd.ProcessState, lines[len(lines)-1]))
}

// trouble kills the program, or stops it for a while, or does neither.
func (u *user) trouble(rng *rand.Rand, p *os.Process, done, over <-chan struct{}) {
	signal := []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP, 0}[rng.IntN(3)]
	select {
	case <-done:
	case <-over:
		_ = p.Signal(os.Interrupt)
	case <-time.After(while(rng, 2*time.Second, 10*time.Second)):
		_ = p.Signal(signal)
		if signal == syscall.SIGSTOP {
			time.Sleep(while(rng, term, 3*term))
			_ = p.Signal(syscall.SIGCONT)
		}
	}
}

// unfinished counts the rentals that the program has to go on with.
func (u *user) unfinished(w *world) (n int) {
	if _, err := os.Stat(u.database); err != nil {
		return 0
	}
	db, err := store.Open(w.ctx, u.database)
	if err != nil {
		if w.ctx.Err() == nil {
			w.breaks("%s: its database: %v", u.name, err)
		}
		return 0
	}
	defer db.Close()
	var tables int
	if err = db.View().Get(&tables, `SELECT count(*) FROM sqlite_master WHERE name = 'rentals'`); err == nil && tables > 0 {
		err = db.View().Get(&n, `SELECT count(*) FROM rentals WHERE state NOT IN ('finished', 'closed')`)
	}
	if err != nil && w.ctx.Err() == nil {
		w.breaks("%s: its database: %v", u.name, err)
	}
	return n
}

// check holds a program's books against the chain and the provider's. It returns what
// its channels settled.
func (u *user) check(w *world) (paid uint64) {
	db, err := store.Open(w.ctx, u.database)
	if err != nil {
		w.Fatal(err)
	}
	states, err := db.Payer().List(w.ctx)
	if err := db.Close(); err != nil {
		w.Fatal(err)
	}
	ids := make([]common.Hash, len(states))
	for i, s := range states {
		ids[i] = s.ID
	}
	views, failed := w.views(ids)
	if err != nil || failed != nil {
		w.Fatal(err, failed)
	}
	for _, s := range states {
		view := views[s.ID]
		paid += view.Settled.Uint64()
		here, err := w.db.Payee().Load(w.ctx, s.ID)
		switch {
		case err != nil && view.Deposit.IsZero(): // its deposit never came, so nobody has to know it
			continue
		case err != nil:
			w.breaks("%s: channel %s: %v", u.name, s.ID, err)
		case view.Settled.Gt(&s.Signed), here.Accepted.Gt(&s.Signed):
			w.breaks("%s: channel %s: signed %s, accepted %s, settled %s", u.name, s.ID, s.Signed.Dec(), here.Accepted.Dec(), view.Settled.Dec())
		case view.Settled.Lt(&here.Accepted):
			w.breaks("%s: channel %s: accepted %s, settled %s", u.name, s.ID, here.Accepted.Dec(), view.Settled.Dec())
		case !view.Finalized:
			w.breaks("%s: channel %s is not closed", u.name, s.ID)
		}
		u.bundle(w, s.ID)
	}
	if left := w.chain.Tokens(w.T, u.address()); left != purse-paid {
		w.breaks("%s has %d of %d, its channels settled %d", u.name, left, uint64(purse), paid)
	}
	u.channels = len(states)
	return paid
}

// bundle makes sure that a program accuses nobody, as everybody is honest.
func (u *user) bundle(w *world, id common.Hash) {
	bundle, err := renter.ExportFile(w.ctx, u.database, id)
	if errors.Is(err, channel.ErrUnknown) {
		bundle, err = x402client.ExportFile(w.ctx, u.database, id)
	}
	if err == nil {
		err = audit.Failures(audit.Verify(w.ctx, bundle, w.chain.Backend))
	}
	if err != nil {
		w.breaks("%s: its books of channel %s: %v", u.name, id, err)
		return
	}
	for _, e := range bundle.Evidence {
		w.breaks("%s accuses an honest provider on channel %s: %s", u.name, id, e.Reason)
	}
}
