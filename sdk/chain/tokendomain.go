package chain

import (
	"context"
	"fmt"

	"github.com/gpupay/gpupay/internal/eip712"
)

// Domain is the name and the version under which the token's EIP-712 messages are signed, by wallets that are told these
// two and no separator. It is an error if the separator does not follow from them.
func (t *Token) Domain(ctx context.Context) (name, version string, err error) {
	if name, err = read[string](ctx, t, nil, "name"); err != nil {
		return "", "", err
	}
	if version, err = read[string](ctx, t, nil, "version"); err != nil {
		return "", "", err
	}
	separator, err := t.DomainSeparator(ctx)
	if err != nil {
		return "", "", err
	}
	id, err := chainID(ctx, t.backend)
	if err != nil {
		return "", "", err
	}
	if eip712.DomainSeparator(name, version, id, t.Address) != separator || len(name) > maxTokenText || len(version) > maxTokenText {
		return "", "", fmt.Errorf("chain: token %s signs under another EIP-712 domain than its name %.64q and version %.64q: give another token", t.Address, name, version)
	}
	return name, version, nil
}
