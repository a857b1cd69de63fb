package provider

import (
	"context"
	"crypto/ecdsa"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/devchain"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/limit"
	"github.com/gpupay/gpupay/sdk/wire"
)

// clientHeader stands for the address that a proxy has seen.
const clientHeader = "X-Test-Client"

func behindProxy(c *Config) {
	c.Limits.ClientIP = func(r *http.Request) string { return r.Header.Get(clientHeader) }
}

// address is the nth of many clients.
func address(n int) string {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 10<<24|uint32(n))
	return netip.AddrFrom4(b).String()
}

// ask hands the provider a request without the way through a socket.
func (r *rig) ask(client string, cred *wire.Credential) *http.Response {
	r.Helper()
	return r.askWithin(r.Context(), client, cred)
}

func (r *rig) askWithin(ctx context.Context, client string, cred *wire.Credential) *http.Response {
	r.Helper()
	req := httptest.NewRequestWithContext(ctx, http.MethodGet, "/lease", nil)
	req.Header.Set(clientHeader, client)
	if cred != nil {
		text, err := cred.Header()
		if err != nil {
			r.Error(err)
		}
		req.Header.Set("Authorization", text)
	}
	w := httptest.NewRecorder()
	r.provider.ServeHTTP(w, req)
	return w.Result()
}

func heap() int64 {
	runtime.GC()
	runtime.GC() // twice: what finalizers held
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// One address that asks for a price in a loop is told to slow down. A renter at
// the same address still pays, and other addresses do not notice.
func TestFloodOfChallengesFromOneAddress(t *testing.T) {
	r := newRig(t, behindProxy, func(c *Config) { c.Terms.Credit = time.Hour })
	lease := r.open(1, 500_000, "")
	const flooder = "203.0.113.9"
	voucher := lease.credential(wire.ActionVoucher, 1000)
	answers, began := map[int]int{}, time.Now()
	for range 5000 {
		resp := r.ask(flooder, nil)
		answers[resp.StatusCode]++
		if resp.StatusCode == http.StatusTooManyRequests && (resp.Header.Get("Retry-After") == "" || resp.Header.Get("WWW-Authenticate") != "") {
			t.Fatalf("turned away with %v", resp.Header)
		}
	}
	t.Logf("5000 requests of one address: %v", answers)
	most := 101 + int(10*time.Since(began).Seconds()) // the burst, and ten a second
	if answers[402] < 100 || answers[402] > most || answers[402]+answers[429] != 5000 {
		t.Errorf("answers: %v", answers)
	}
	if err := problemIn(wire.PaymentRequired, r.ask("203.0.113.10", nil)); err != nil {
		t.Errorf("another address: %v", err)
	}
	if resp := r.do("POST", "", voucher, clientHeader, flooder); resp.StatusCode != http.StatusOK {
		t.Errorf("a renter at the flooder's address could not pay: %v", wire.ParseProblem(resp))
	}
}

// Clients without end do not make memory without end. It runs by itself, before the tests that run side by side: the heap is the process's.
func TestFloodOfChallengesFromManyAddresses(t *testing.T) {
	net, err := devchain.Start(t.Context(), devchain.Options{BlockTime: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { net.Close() })
	nobody := func(*rig) *channel.Key { return nil }
	r := rigOn(t, net, nobody, behindProxy, func(c *Config) { c.Limits.Clients = 1000 })
	flood := func(from, to int) {
		for n := from; n < to; n++ {
			if resp := r.ask(address(n), nil); resp.StatusCode != http.StatusPaymentRequired {
				t.Fatalf("client %d got %s", n, resp.Status)
			}
		}
	}
	const known, more = 2000, 8000
	flood(0, known)
	before := heap()
	flood(known, known+more)
	grown := heap() - before
	t.Logf("%d more clients: %d remembered, heap grew by %d KB", more, r.provider.limiter.Remembered(), grown>>10)
	if r.provider.limiter.Remembered() != 1000 {
		t.Errorf("%d clients are remembered", r.provider.limiter.Remembered())
	}
	if grown > 512*more {
		t.Errorf("the heap grew by %d KB", grown>>10)
	}
}

// unmined is an open by a transaction that never comes. It costs its sender one
// signature by a key that has nothing.
func (r *rig) unmined(challenge wire.Challenge, key *ecdsa.PrivateKey, n int) *wire.Credential {
	signer := channel.NewKey(key)
	terms := r.terms(signer.Address(), 0)
	binary.BigEndian.PutUint64(terms.Salt[8:], uint64(n))
	amount := wireAmount(0)
	return &wire.Credential{Challenge: challenge, Source: wire.Source(terms.ChainID, terms.Payer), Payload: wire.Payload{
		Action: wire.ActionOpen, Type: wire.TypeHash, ChannelID: terms.ID(), Salt: &terms.Salt, Hash: &common.Hash{1, byte(n >> 8), byte(n)},
		CumulativeAmount: &amount, Signature: r.sign(signer, terms, 0)}}
}

// flood sends all opens at once and counts the answers.
func (r *rig) flood(creds []*wire.Credential, client func(n int) string) map[int]int {
	var mu sync.Mutex
	var wg sync.WaitGroup
	answers := map[int]int{}
	for n, cred := range creds {
		wg.Go(func() {
			resp := r.ask(client(n), cred)
			mu.Lock()
			defer mu.Unlock()
			answers[resp.StatusCode]++
		})
	}
	wg.Wait()
	return answers
}

// Opens that name transactions which never come wait in a few places, whatever
// their number; a renter with money gets in meanwhile.
func TestFloodOfOpensFromManyAddresses(t *testing.T) {
	const opens = 2000
	r := newRig(t, behindProxy, func(c *Config) {
		c.Deposits.Timeout, c.Limits.Unmined = 4*time.Second, 16
		c.Limits.Pending = 4096 // what bounds here is what nobody has paid for
	})
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	challenge := r.challenge()
	creds := make([]*wire.Credential, opens)
	for n := range creds {
		creds[n] = r.unmined(challenge, private, n)
	}
	lease := &tab{rig: r, key: r.payer, terms: r.terms(r.payer.Address(), 1)}
	own := r.openCredential(r.payer, lease.terms, 100_000, 0)
	if own.Payload.Proof, err = wire.Prove(t.Context(), r.payer, lease.terms, own.Challenge.ID, "attach"); err != nil { // its lease may begin though it was answered 503
		t.Fatal(err)
	}
	before := heap()
	began := time.Now()
	done := make(chan map[int]int, 1)
	go func() { done <- r.flood(creds, address) }()
	resp := r.do("GET", "", own) // gasless, in the middle of it
	for ; resp.StatusCode == http.StatusServiceUnavailable && time.Since(began) < 2*time.Minute; resp = r.do("GET", "", own) {
		time.Sleep(10 * time.Millisecond) // where blocks are slow, or there was no room
	}
	lease.attach(resp)
	opened := time.Since(began)
	answers := <-done
	t.Logf("%d opens at once: %v in %s; a renter's own took %s; heap grew by %d KB", opens, answers, time.Since(began).Round(time.Millisecond), opened.Round(time.Millisecond), (heap()-before)>>10)
	if answers[http.StatusServiceUnavailable] != opens {
		t.Errorf("answers: %v", answers)
	}
	grown := heap() - before
	for range 20 { // other tests run meanwhile: what is left is the least of what is seen
		if grown <= 16<<20 {
			break
		}
		time.Sleep(100 * time.Millisecond)
		grown = min(grown, heap()-before)
	}
	if grown > 16<<20 {
		t.Errorf("the heap grew by %d KB", grown>>10)
	}
	lease.record()
	if deposits, waiting := r.provider.limiter.Held(); deposits != 0 || waiting != 0 {
		t.Errorf("still counted as under way: %d, %d of them waiting", deposits, waiting)
	}
	if n := sessionOf(r.provider).Channels.Opens.Held(); n != 0 {
		t.Errorf("%d channels are still locked", n)
	}
}

func TestFloodOfOpensFromOneAddress(t *testing.T) {
	r := newRig(t, behindProxy, func(c *Config) {
		c.Deposits.Timeout, c.Limits.Deposits = 5*time.Second, limit.Rate{PerSecond: 0.01, Burst: 20}
	})
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	challenge := r.challenge()
	creds := make([]*wire.Credential, 1000)
	for n := range creds {
		creds[n] = r.unmined(challenge, private, n)
	}
	answers := r.flood(creds, func(int) string { return "203.0.113.9" })
	t.Logf("%d opens of one address: %v", len(creds), answers)
	if answers[http.StatusServiceUnavailable] > 25 || answers[http.StatusTooManyRequests] < 975 {
		t.Errorf("answers: %v", answers)
	}
	sessionOf(r.provider).OpenTimeout = time.Minute // nobody is being served now
	resp := r.do("GET", "", r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 100_000, 0), clientHeader, "203.0.113.10")
	if resp.StatusCode != http.StatusOK {
		t.Errorf("another address could not open: %v", wire.ParseProblem(resp))
	}
}

// Waiting for one's own open is waiting for a transaction too, and finds no
// more room than that: all but four are told at once, while four wait.
func TestFloodOfOpensOfOneChannel(t *testing.T) {
	const opens, room = 200, 4
	r := newRig(t, behindProxy, func(c *Config) { c.Deposits.Timeout, c.Limits.Unmined = time.Minute, room })
	private, err := crypto.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	cred := r.unmined(r.challenge(), private, 1)
	waiting, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	answers := make(chan *http.Response, opens)
	for n := range opens {
		go func() { answers <- r.askWithin(waiting, address(n), cred) }()
	}
	for range opens - room {
		if err := problemIn(wire.Unavailable, <-answers); err != nil { // or all of them wait, and the test with them
			t.Error(err)
		}
	}
	select {
	case <-answers:
		t.Errorf("fewer than %d wait", room)
	default:
	}
	giveUp()
	for range room {
		<-answers
	}
}

// The same open many times over is one open: the others wait for it or are
// turned away, and one lease begins.
func TestOneOpenSentManyTimesAtOnce(t *testing.T) {
	r := newRig(t)
	cred := r.openCredential(r.payer, r.terms(r.payer.Address(), 1), 100_000, 0)
	var wg sync.WaitGroup
	answers := make(chan *http.Response, 8)
	for range cap(answers) {
		wg.Go(func() { answers <- r.do("GET", "", cred) })
	}
	wg.Wait()
	close(answers)
	served := 0
	for resp := range answers {
		if resp.StatusCode == http.StatusOK {
			served++
		} else if err := problemIn(wire.VerificationFailed, resp); err != nil {
			t.Error(err)
		}
	}
	if free := r.provider.config.Allocator.(*gpu.HostAllocator).Free(); served != 1 || free != 1 {
		t.Errorf("%d streams began, %d of 2 devices are free", served, free)
	}
	if got := r.balance(r.payer.Address()); got != 900_000 {
		t.Errorf("the payer has %d left of 1,000,000 after a deposit of 100,000", got)
	}
}

// Many streams on one channel at once: the last one lives, the others end
// without the last receipt, and there is one lease.
func TestManyStreamsOnOneChannelAtOnce(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Terms.Credit = time.Hour })
	lease := r.open(1, 500_000, "")
	var streams [8]*tab
	var wg sync.WaitGroup
	for i := range streams {
		cred := lease.credential(wire.ActionVoucher, 1)
		cred.Payload.LeaseSecret = lease.lease.Secret
		streams[i] = &tab{rig: r, key: lease.key, terms: lease.terms}
		wg.Go(func() { streams[i].attach(r.do("GET", "", cred)) })
	}
	wg.Wait()
	ended := make(chan bool, len(streams)+1) // with a receipt?
	for _, s := range append(streams[:], lease) {
		go func() {
			receipt := false
			for {
				e, err := s.in.Next()
				if err != nil {
					ended <- receipt
					return
				}
				receipt = receipt || e.Name == wire.EventReceipt
			}
		}()
	}
	for range streams { // all but one of nine
		if <-ended {
			t.Error("a replaced stream had the last receipt")
		}
	}
	select {
	case <-ended:
		t.Error("no stream is left")
	case <-time.After(300 * time.Millisecond):
	}
	lease.release()
	if !<-ended {
		t.Error("the last stream ended without a receipt")
	}
	if free := r.provider.config.Allocator.(*gpu.HostAllocator).Free(); free != 2 {
		t.Errorf("%d of 2 devices are free", free)
	}
}

// A body is not read on to its end, however slowly it comes and however long
// it says it is.
func TestBodiesAreNotReadToTheirEnd(t *testing.T) {
	r := newRig(t)
	body := newEndless(1 << 30)
	req, err := http.NewRequest(http.MethodPost, r.server.URL+"/lease", body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = 1 << 30
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		defer resp.Body.Close()
		if got := wire.ParseProblem(resp); !errors.Is(got, &wire.MalformedCredential) {
			t.Errorf("a body of 1 GB: %v", got)
		}
	}
	if sent := 1<<30 - body.left.Load(); sent > 8<<20 { // the rest is what sockets hold
		t.Errorf("%d bytes of it were taken", sent)
	}
	small, err := http.Post(r.server.URL+"/lease", "application/json", newEndless(1000))
	if err != nil {
		t.Fatal(err)
	}
	defer small.Body.Close()
	if err := problemIn(wire.PaymentRequired, small); err != nil {
		t.Errorf("a small body: %v", err)
	}
}

// endless is a body that the client goes on to send after it has its answer.
type endless struct{ left atomic.Int64 }

func newEndless(size int64) *endless {
	e := &endless{}
	e.left.Store(size)
	return e
}

func (e *endless) Read(b []byte) (int, error) {
	left := e.left.Load()
	if left == 0 {
		return 0, io.EOF
	}
	n := min(left, int64(len(b)))
	e.left.Store(left - n)
	return int(n), nil
}

func (e *endless) Close() error { return nil }
