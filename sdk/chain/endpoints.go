package chain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/ethereum/go-ethereum"
	"github.com/ethereum/go-ethereum/accounts/abi/bind/v2"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/core/types"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/internal/redact"
)

// ErrContradiction is two endpoints of one chain that say different things of one block. What hangs on it waits.
var ErrContradiction = errors.New("RPC endpoints contradict each other")

// endpointShare bounds how long one of several endpoints may take before the next is asked.
const endpointShare = 10 * time.Second

// Connect dials one endpoint, or several of one chain with commas between them, and checks every answer (Checked). With
// several, reads go to the first that works, transactions to all, and what money hangs on is asked of two: see Endpoints.
// One that cannot be reached is left out until it can be, as long as another one can. A comma in a URL is written %2C.
func Connect(ctx context.Context, rpcs string, log *slog.Logger) (Backend, error) {
	urls := strings.FieldsFunc(rpcs, func(r rune) bool { return r == ',' || unicode.IsSpace(r) })
	if len(urls) <= 1 {
		client, err := Dial(ctx, strings.Join(urls, ""))
		if err != nil {
			return nil, err
		}
		return Checked(client), nil
	}
	e := &Endpoints{log: log, share: endpointShare}
	for _, url := range urls {
		e.nodes = append(e.nodes, &endpoint{url: url, name: redact.URL(url), dialling: make(chan struct{}, 1)})
	}
	return e, e.meet(ctx)
}

// Endpoints is a Backend of several endpoints of one chain. A read goes to the first that works, so that what is read
// together is of one node; a transaction goes to all. Confirmed views, events and receipts that are taken for final are
// asked of two, where two answer: where they contradict each other, that is said and the cautious answer counts. One that
// is silent is not waited for: see silence.
type Endpoints struct {
	log   *slog.Logger
	chain uint64
	nodes []*endpoint
	share time.Duration // endpointShare, but in tests
}

var (
	_ Backend                      = (*Endpoints)(nil)
	_ bind.BlockHashContractCaller = (*Endpoints)(nil)
)

// An endpoint is one of several. It is dialled when it is first needed, and again after it could not be.
type endpoint struct {
	url, name string
	dialling  chan struct{} // held while it is dialled; backend is of who holds it
	backend   Backend

	mu      sync.Mutex
	pace    Backoff
	rests   time.Time // it failed: others are asked first until then
	late    time.Time // its newest block was far behind another's: the same
	slow    time.Time // it took slowAnswer and more for an answer: the same
	silence silence
}

// meet dials all endpoints at once. They must serve one chain, and one of them must answer.
func (e *Endpoints) meet(ctx context.Context) error {
	ids, errs := make([]uint64, len(e.nodes)), make([]error, len(e.nodes))
	var wait sync.WaitGroup
	for i, node := range e.nodes {
		wait.Go(func() { ids[i], errs[i] = node.meet(ctx, e.share) })
	}
	wait.Wait()
	for i, node := range e.nodes {
		switch {
		case errs[i] != nil:
		case e.chain != 0 && ids[i] != e.chain:
			return fmt.Errorf("%w: %s serves chain %d, the endpoint before it %d; name endpoints of one chain", ErrChainID, node.name, ids[i], e.chain)
		default:
			e.chain = ids[i]
		}
	}
	failed := errors.Join(errs...)
	if e.chain == 0 {
		return fmt.Errorf("%w: none of %d endpoints answers: %s", ErrUnreachable, len(e.nodes), line(failed.Error()))
	}
	if failed != nil {
		e.say("an RPC endpoint cannot be reached; the others are used", "err", line(failed.Error()))
	}
	return nil
}

// meet is the chain that an endpoint serves.
func (n *endpoint) meet(ctx context.Context, limit time.Duration) (uint64, error) {
	share, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	backend, err := n.dial(share, 0)
	if err == nil {
		var id uint64
		if id, err = chainID(share, backend); err == nil {
			return id, nil
		}
	}
	if share.Err() != nil {
		n.unheard(limit)
	} else {
		n.failed()
	}
	return 0, fmt.Errorf("%s: %w", n.name, err)
}

// dial returns the endpoint's backend; one that serves another chain than is wanted (0: any) is refused.
func (n *endpoint) dial(ctx context.Context, want uint64) (Backend, error) {
	select {
	case n.dialling <- struct{}{}:
		defer func() { <-n.dialling }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if n.backend != nil {
		return n.backend, nil
	}
	client, err := Dial(ctx, n.url)
	if err != nil {
		return nil, err
	}
	backend := Checked(client)
	if want != 0 {
		if err := CheckChainID(ctx, backend, want); err != nil {
			client.Close()
			return nil, err
		}
	}
	n.backend = backend
	return backend, nil
}

// failed has others asked first for a while. It reports whether the endpoint worked before.
func (n *endpoint) failed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	fresh := n.rests.IsZero()
	n.rests = time.Now().Add(n.pace.Next())
	return fresh
}

// worked reports whether the endpoint failed before. While it rests it goes on resting: it may answer one question and not
// another.
func (n *endpoint) worked() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.rests.IsZero() || time.Now().Before(n.rests) {
		return false
	}
	n.rests = time.Time{}
	n.pace.Reset()
	return true
}

// order is the endpoints as they are asked: those that work first, then those that have stopped following the chain or are slow, then
// those that failed; each group as configured. The silent ones stand apart.
func (e *Endpoints) order() (nodes, silent []*endpoint) {
	for _, n := range e.nodes {
		if e.silent(n) {
			silent = append(silent, n)
		} else {
			nodes = append(nodes, n)
		}
	}
	now := time.Now()
	slices.SortStableFunc(nodes, func(a, b *endpoint) int { return a.resting(now) - b.resting(now) })
	return nodes, silent
}

func (n *endpoint) resting(now time.Time) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case now.Before(n.rests):
		return 2
	case now.Before(n.late), now.Before(n.slow):
		return 1
	}
	return 0
}

// An endpoint that took slowAnswer for an answer is asked after the others for slowFor, and where it is asked beside one that is
// not slow it is waited for no longer than slowShare meanwhile: what it would say is not worth a settlement that comes too late.
const (
	slowAnswer = 4 * time.Second
	slowFor    = 5 * time.Minute
	slowShare  = 3 * time.Second
)

// took notes how long an endpoint took for an answer, or to give none. It reports whether it is slow from now on.
func (n *endpoint) took(d time.Duration) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d < slowAnswer {
		return false
	}
	fresh := time.Now().After(n.slow)
	n.slow = time.Now().Add(slowFor)
	return fresh
}

func (n *endpoint) isSlow() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return time.Now().Before(n.slow)
}

// lateFor is how long one that is far behind another is asked after it, unless it is seen to be behind again.
const lateFor = time.Minute

// lag notes that the newest block of an endpoint is far behind another's, or is not.
func (n *endpoint) lag(far bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.late = time.Time{}
	if far {
		n.late = time.Now().Add(lateFor)
	}
}

// ask has one endpoint answer within its share of the time, and keeps account of whether it works.
func ask[T any](ctx context.Context, e *Endpoints, n *endpoint, f func(context.Context, Backend) (T, error)) (T, error) {
	return askFor(ctx, e, n, e.share, f)
}

// askFor is ask with a share of the caller's. One that has not used it up before half of the time is over leaves the other half to
// the next endpoint.
func askFor[T any](ctx context.Context, e *Endpoints, n *endpoint, limit time.Duration, f func(context.Context, Backend) (T, error)) (T, error) {
	var zero T
	if until, ok := ctx.Deadline(); ok {
		limit = min(limit, time.Until(until)/2)
	}
	share, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	backend, err := n.dial(share, e.chain)
	var v T
	if err == nil {
		v, err = f(share, backend)
	}
	if n.took(time.Since(began)) && ctx.Err() == nil {
		e.say("an RPC endpoint is slow to answer; the others are asked first for a while", "endpoint", n.name, "took", time.Since(began).Round(time.Millisecond))
	}
	switch {
	case err == nil:
		if n.heard() || n.worked() {
			e.say("an RPC endpoint answers again", "endpoint", n.name)
		}
		return v, nil
	case ctx.Err() != nil:
		return zero, err
	case share.Err() != nil && limit >= e.share/4: // less is too little to tell
		if n.unheard(e.share) {
			e.say("an RPC endpoint does not answer; it is left out until it does", "endpoint", n.name, "waited", limit.Round(time.Millisecond))
		}
	case isTransport(err) || limited(err) || errors.Is(err, ErrUnreachable) || errors.Is(err, ErrChainID):
		if n.failed() {
			e.say("an RPC endpoint fails; the next one is asked", "endpoint", n.name, "err", line(err.Error()))
		}
	}
	return zero, err
}

// limited reports whether an endpoint answers that it is asked too much.
func limited(err error) bool {
	var said rpc.Error
	if !errors.As(err, &said) {
		return false
	}
	text := strings.ToLower(said.Error())
	return said.ErrorCode() == -32005 || said.ErrorCode() == 429 || strings.Contains(text, "rate limit") || strings.Contains(text, "too many requests")
}

// first is the answer of the first endpoint that has one. What a contract refuses is an answer once a second endpoint has
// none either: one alone could keep money from being fetched. What one does not know, or does not serve, is asked of the
// others. A silent one is waited for where no other one says anything.
func first[T any](ctx context.Context, e *Endpoints, f func(context.Context, Backend) (T, error)) (T, error) {
	var zero T
	var refused, failed, absent error
	nodes, silent := e.order()
	for i, node := range append(nodes, silent...) {
		if i >= len(nodes) && (refused != nil || absent != nil) {
			break
		}
		v, err := ask(ctx, e, node, f)
		if err == nil {
			return v, nil
		}
		if ctx.Err() != nil {
			return zero, cmp.Or(refused, err)
		}
		if _, reverts := revertData(err); reverts {
			if refused != nil {
				return zero, refused
			}
			refused = err
		} else if errors.Is(err, ethereum.NotFound) {
			absent = err
		} else if failed == nil {
			failed = err
		}
	}
	return zero, cmp.Or(refused, absent, failed)
}

// A statement is what one endpoint said.
type statement[T any] struct {
	by   string
	say  T
	node *endpoint // nil: the only one
}

// two is what two different endpoints answer, the preferred one first; one, where no second answers. An endpoint that does
// not know what it is asked for does not answer.
func two[T any](ctx context.Context, backend Backend, f func(context.Context, Backend) (T, error)) ([]statement[T], error) {
	return statements(ctx, backend, 2, f)
}

// all is two of every endpoint that answers.
func all[T any](ctx context.Context, backend Backend, f func(context.Context, Backend) (T, error)) ([]statement[T], error) {
	return statements(ctx, backend, math.MaxInt, f)
}

// bounds are the least and the most of what endpoints answer.
func bounds[T any](said []statement[T], compare func(a, b T) int) (least, most T) {
	by := func(a, b statement[T]) int { return compare(a.say, b.say) }
	return slices.MinFunc(said, by).say, slices.MaxFunc(said, by).say
}

// statements asks as many endpoints as are wanted at once, and the others for those that give no answer.
func statements[T any](ctx context.Context, backend Backend, most int, f func(context.Context, Backend) (T, error)) ([]statement[T], error) {
	e, more := several(backend)
	if !more {
		v, err := f(ctx, backend)
		return []statement[T]{{say: v}}, err
	}
	nodes, silent := e.order()
	if len(nodes) == 0 {
		nodes = silent
	}
	quick := slices.ContainsFunc(nodes, func(n *endpoint) bool { return !n.isSlow() })
	var said []statement[T]
	var failed error
	for len(nodes) > 0 && len(said) < most && ctx.Err() == nil {
		asked := nodes[:min(most-len(said), len(nodes))]
		nodes = nodes[len(asked):]
		answers, errs := make([]T, len(asked)), make([]error, len(asked))
		var wait sync.WaitGroup
		for i, n := range asked {
			limit := e.share
			if quick && n.isSlow() {
				limit = min(limit, slowShare)
			}
			wait.Go(func() { answers[i], errs[i] = askFor(ctx, e, n, limit, f) })
		}
		wait.Wait()
		for i, n := range asked {
			if errs[i] == nil {
				said = append(said, statement[T]{n.name, answers[i], n})
			} else if failed == nil {
				failed = errs[i]
			}
		}
	}
	if len(said) == 0 {
		return nil, cmp.Or(failed, ctx.Err())
	}
	return said, nil
}

// newerFirst puts the statement of the endpoint that is further first, by the newest block of each. One that is far behind the
// other is asked after it from then on, and reports that.
func newerFirst[T any](said []statement[T], head func(T) uint64) (far bool) {
	if len(said) != 2 {
		return false
	}
	if head(said[1].say) > head(said[0].say) {
		said[0], said[1] = said[1], said[0]
	}
	far = head(said[0].say)-head(said[1].say) > FarBehind
	said[0].node.lag(false)
	said[1].node.lag(far)
	return far
}

// Heads are the newest blocks of two endpoints, that of the further one first; the same twice where only one answers.
func Heads(ctx context.Context, backend Backend) (newest, older *types.Header, err error) {
	said, err := two(ctx, backend, func(ctx context.Context, b Backend) (*types.Header, error) { return b.HeaderByNumber(ctx, nil) })
	if err != nil {
		return nil, nil, err
	}
	newerFirst(said, func(h *types.Header) uint64 { return h.Number.Uint64() })
	return said[0].say, said[len(said)-1].say, nil
}

func (e *Endpoints) say(text string, args ...any) {
	if e.log != nil {
		e.log.Warn(text, args...)
	}
}

// contradict says that two endpoints contradict each other.
func contradict(backend Backend, about, one, other string) error {
	err := fmt.Errorf("%w: %s: %s; %s; the cautious answer counts until they agree", ErrContradiction, about, one, other)
	if e, more := several(backend); more {
		e.say(err.Error())
	}
	return err
}

// ChainID is the chain that all endpoints serve.
func (e *Endpoints) ChainID(context.Context) (*big.Int, error) {
	return new(big.Int).SetUint64(e.chain), nil
}

func (e *Endpoints) BlockNumber(ctx context.Context) (uint64, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) (uint64, error) { return b.BlockNumber(ctx) })
}

func (e *Endpoints) HeaderByNumber(ctx context.Context, number *big.Int) (*types.Header, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) (*types.Header, error) { return b.HeaderByNumber(ctx, number) })
}

func (e *Endpoints) HeaderByHash(ctx context.Context, hash common.Hash) (*types.Header, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) (*types.Header, error) { return b.HeaderByHash(ctx, hash) })
}

func (e *Endpoints) BlockByNumber(ctx context.Context, number *big.Int) (*types.Block, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) (*types.Block, error) { return b.BlockByNumber(ctx, number) })
}

// BalanceAt is the most of what two endpoints say: one that denies coin must not keep transactions from being sent, and
// one that invents it makes a node refuse them.
func (e *Endpoints) BalanceAt(ctx context.Context, account common.Address, block *big.Int) (*big.Int, error) {
	said, err := two(ctx, e, func(ctx context.Context, b Backend) (*big.Int, error) { return b.BalanceAt(ctx, account, block) })
	if err != nil {
		return nil, err
	}
	_, most := bounds(said, (*big.Int).Cmp)
	return most, nil
}

func (e *Endpoints) NonceAt(ctx context.Context, account common.Address, block *big.Int) (uint64, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) (uint64, error) { return b.NonceAt(ctx, account, block) })
}

func (e *Endpoints) PendingNonceAt(ctx context.Context, account common.Address) (uint64, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) (uint64, error) { return b.PendingNonceAt(ctx, account) })
}

func (e *Endpoints) CodeAt(ctx context.Context, account common.Address, block *big.Int) ([]byte, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) ([]byte, error) { return b.CodeAt(ctx, account, block) })
}

func (e *Endpoints) PendingCodeAt(ctx context.Context, account common.Address) ([]byte, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) ([]byte, error) { return b.PendingCodeAt(ctx, account) })
}

func (e *Endpoints) CallContract(ctx context.Context, msg ethereum.CallMsg, block *big.Int) ([]byte, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) ([]byte, error) { return b.CallContract(ctx, msg, block) })
}

func (e *Endpoints) CallContractAtHash(ctx context.Context, msg ethereum.CallMsg, block common.Hash) ([]byte, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) ([]byte, error) {
		caller, ok := b.(bind.BlockHashContractCaller)
		if !ok {
			return nil, errors.New("chain: backend cannot read at a block hash")
		}
		return caller.CallContractAtHash(ctx, msg, block)
	})
}

func (e *Endpoints) CodeAtHash(ctx context.Context, account common.Address, block common.Hash) ([]byte, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) ([]byte, error) {
		caller, ok := b.(bind.BlockHashContractCaller)
		if !ok {
			return nil, errors.New("chain: backend cannot read at a block hash")
		}
		return caller.CodeAtHash(ctx, account, block)
	})
}

func (e *Endpoints) EstimateGas(ctx context.Context, msg ethereum.CallMsg) (uint64, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) (uint64, error) { return b.EstimateGas(ctx, msg) })
}

func (e *Endpoints) SuggestGasPrice(ctx context.Context) (*big.Int, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) (*big.Int, error) { return b.SuggestGasPrice(ctx) })
}

func (e *Endpoints) SuggestGasTipCap(ctx context.Context) (*big.Int, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) (*big.Int, error) { return b.SuggestGasTipCap(ctx) })
}

// SubscribeNewHead subscribes at the first endpoint that can.
func (e *Endpoints) SubscribeNewHead(ctx context.Context, ch chan<- *types.Header) (ethereum.Subscription, error) {
	return first(ctx, e, func(_ context.Context, b Backend) (ethereum.Subscription, error) { return b.SubscribeNewHead(ctx, ch) })
}

// SubscribeFilterLogs subscribes at the first endpoint that can.
func (e *Endpoints) SubscribeFilterLogs(ctx context.Context, q ethereum.FilterQuery, ch chan<- types.Log) (ethereum.Subscription, error) {
	return first(ctx, e, func(_ context.Context, b Backend) (ethereum.Subscription, error) {
		return b.SubscribeFilterLogs(ctx, q, ch)
	})
}

// FilterLogs is what two endpoints know of, together: one that leaves an event out, such as a close request, hides nothing,
// nor does one that is further than the other: that is asked for what it has.
func (e *Endpoints) FilterLogs(ctx context.Context, q ethereum.FilterQuery) ([]types.Log, error) {
	said, err := two(ctx, e, func(ctx context.Context, b Backend) ([]types.Log, error) { return logsUpToHead(ctx, b, q) })
	if err != nil {
		return nil, err
	}
	all := said[0].say
	for _, more := range said[1:] {
		for _, log := range more.say {
			same := func(known types.Log) bool { return known.BlockHash == log.BlockHash && known.Index == log.Index }
			if !slices.ContainsFunc(all, same) {
				all = append(all, log)
			}
		}
	}
	return all, nil
}

// logsUpToHead asks a node that refuses blocks which it does not have yet for those that it has.
func logsUpToHead(ctx context.Context, b Backend, q ethereum.FilterQuery) ([]types.Log, error) {
	logs, err := b.FilterLogs(ctx, q)
	if err == nil || isTransport(err) || q.FromBlock == nil || q.ToBlock == nil {
		return logs, err
	}
	head, failed := b.BlockNumber(ctx)
	switch {
	case failed != nil || head >= q.ToBlock.Uint64():
		return nil, err
	case head < q.FromBlock.Uint64():
		return []types.Log{}, nil
	}
	q.ToBlock = new(big.Int).SetUint64(head)
	return b.FilterLogs(ctx, q)
}

func (e *Endpoints) TransactionByHash(ctx context.Context, hash common.Hash) (*types.Transaction, bool, error) {
	type found struct {
		tx      *types.Transaction
		pending bool
	}
	f, err := first(ctx, e, func(ctx context.Context, b Backend) (found, error) {
		tx, pending, err := b.TransactionByHash(ctx, hash)
		return found{tx, pending}, err
	})
	return f.tx, f.pending, err
}

func (e *Endpoints) TransactionReceipt(ctx context.Context, hash common.Hash) (*types.Receipt, error) {
	return Receipt(ctx, e, hash)
}

// charged believes one endpoint alone no revert: what is sent again for it costs gas, and whether a transaction moved what it
// was to move is asked of the contract besides.
func (e *Endpoints) charged(ctx context.Context, hash common.Hash) (*types.Receipt, *big.Int, error) {
	type found struct {
		receipt *types.Receipt
		data    *big.Int
	}
	read := func(ctx context.Context, b Backend) (found, error) {
		receipt, data, err := charged(ctx, b, hash)
		return found{receipt, data}, err
	}
	f, err := first(ctx, e, read)
	if err != nil || f.receipt.Status == types.ReceiptStatusSuccessful {
		return f.receipt, f.data, err
	}
	said, err := two(ctx, e, read)
	if err != nil {
		return f.receipt, f.data, nil
	}
	for _, other := range said {
		if r := other.say.receipt; r.BlockHash == f.receipt.BlockHash && r.Status == types.ReceiptStatusSuccessful {
			_ = contradict(e, "transaction "+hash.Hex(), "one says that it reverted", other.by+" that it succeeded")
			return r, other.say.data, nil
		}
	}
	return f.receipt, f.data, nil
}

func (e *Endpoints) transactions(ctx context.Context, number *big.Int) ([]sent, error) {
	return first(ctx, e, func(ctx context.Context, b Backend) ([]sent, error) { return transactions(ctx, b, number) })
}

// SendTransaction hands a transaction to all endpoints. It is sent once one of them takes it; the others have it besides. A
// silent one is not waited for. Its error is what each of those said that refused it.
func (e *Endpoints) SendTransaction(ctx context.Context, tx *types.Transaction) error {
	nodes, silent := e.order()
	waited := len(nodes)
	if waited == 0 {
		waited = len(silent)
	}
	answers := make(chan error, len(e.nodes))
	background := context.WithoutCancel(ctx)
	for i, node := range append(nodes, silent...) {
		go func() {
			_, err := ask(background, e, node, func(ctx context.Context, b Backend) (struct{}, error) {
				return struct{}{}, b.SendTransaction(ctx, tx)
			})
			if i < waited {
				answers <- err
			}
		}()
	}
	var refused []error
	var failed error
	for range waited {
		select {
		case err := <-answers:
			if err == nil {
				return nil
			}
			if isTransport(err) || errors.Is(err, ErrUnreachable) {
				failed = err
			} else {
				refused = append(refused, err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if refused != nil {
		return errors.Join(refused...)
	}
	return failed
}
