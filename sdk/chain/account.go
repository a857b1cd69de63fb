package chain

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
)

// An account is a key on a chain and what is known of it, which all parts of a Sender read: none changes it but for the chain's id,
// which is asked for once.
type account struct {
	backend Backend
	key     channel.Signer
	store   *Store
	marks   Marks // nil: the database alone remembers what was signed for
	log     *slog.Logger
	now     func() time.Time

	poll     time.Duration // between looks
	patience time.Duration // how long a version waits before its fee is raised, and what is doubtful before it is acted on
	finality uint64        // blocks after which a mined transaction is left alone

	identity sync.Mutex // guards chain
	chain    uint64     // 0: not asked yet
}

func (a *account) address() common.Address { return a.key.Address() }

func (a *account) chainID(ctx context.Context) (uint64, error) {
	a.identity.Lock()
	defer a.identity.Unlock()
	if a.chain != 0 {
		return a.chain, nil
	}
	id, err := chainID(ctx, a.backend)
	if err == nil {
		a.chain = id
	}
	return id, err
}

// shown is the first nonce that no endpoint has a transaction for: the least that two say. sure is that there were two.
func (a *account) shown(ctx context.Context) (seen uint64, sure bool, err error) {
	said, err := two(ctx, a.backend, func(ctx context.Context, b Backend) (uint64, error) { return b.PendingNonceAt(ctx, a.address()) })
	if err != nil {
		return 0, false, Unread("the nonce of "+a.address().String(), err)
	}
	seen, _ = bounds(said, cmp.Compare[uint64])
	return seen, len(said) > 1, nil
}

// A turn is a lock that is waited for only as long as a context lasts: who holds it may wait for an endpoint, and an
// interrupt must not wait for that. The zero value is free.
type turn struct {
	once sync.Once
	held chan struct{}
}

func (t *turn) enter(ctx context.Context) error {
	t.once.Do(func() { t.held = make(chan struct{}, 1) })
	select {
	case t.held <- struct{}{}:
		return nil
	default:
	}
	select {
	case t.held <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *turn) leave() { <-t.held }
