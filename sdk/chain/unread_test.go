package chain_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum"

	"github.com/gpupay/gpupay/internal/badrpc"
	"github.com/gpupay/gpupay/sdk/chain"
)

// What could not be read can be asked for again (ErrUnreachable), and is called unreachable only where nobody answered.
func TestUnreadSaysWhatHappened(t *testing.T) {
	w := newWorld(t)
	answer := func(fault badrpc.Fault) error {
		bad := badrpc.New(t, w.URL)
		bad.On("eth_getBlockByNumber", fault)
		client, err := chain.Connect(t.Context(), bad.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = client.HeaderByNumber(t.Context(), nil)
		return err
	}
	for _, test := range []struct {
		name, says string
		err        error
	}{
		{"nobody", "RPC endpoint unreachable: reading the newest block", &net.OpError{Op: "dial", Err: errors.New("refused")}},
		{"an HTTP error", "RPC endpoint unreachable: reading the newest block", answer(badrpc.Status(502))},
		{"an error", "RPC endpoint answers with an error: reading the newest block: header not found", answer(badrpc.Fail(-32000, "header not found"))},
		{"nothing found", "RPC endpoint answers with an error", ethereum.NotFound},
		{"an incomplete answer", "incomplete answer", answer(badrpc.Without("timestamp"))},
		{"an interrupt", "reading the newest block: context canceled", context.Canceled},
	} {
		err := chain.Unread("the newest block", test.err)
		far := strings.HasPrefix(test.says, chain.ErrUnreachable.Error())
		if test.err == nil || !errors.Is(err, chain.ErrUnreachable) || !strings.Contains(err.Error(), test.says) ||
			strings.Contains(err.Error(), chain.ErrUnreachable.Error()) != far {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}
