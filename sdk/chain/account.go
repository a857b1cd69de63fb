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
