package chain

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/ethereum/go-ethereum/accounts/abi"
	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/rpc"

	"github.com/gpupay/gpupay/bindings"
	"github.com/gpupay/gpupay/bindings/batchsettlement"
	"github.com/gpupay/gpupay/sdk/internal/refusal"
)

// A Revert is a call that the contract refused. Name is the custom error (or "Error" for a reason string, "Panic", or
// "" where no data came), Args its values in order. Data, the raw bytes, is for logs: it never belongs in an answer to a
// peer.
type Revert struct {
	Name string
	Args []any
	Data []byte
}

func (r *Revert) Error() string {
	switch {
	case r.Name == "" && len(r.Data) == 0:
		return "reverted without a reason"
	case r.Name == "":
		return fmt.Sprintf("reverted with unknown error %s", hexutil.Encode(r.Data[:min(len(r.Data), 4)]))
	case r.Name == "Error" && len(r.Args) == 1:
		return fmt.Sprintf("reverted: %v", r.Args[0])
	}
	args := make([]string, len(r.Args))
	for i, arg := range r.Args {
		args[i] = show(arg)
	}
	return fmt.Sprintf("reverted: %s(%s)", r.Name, strings.Join(args, ", "))
}

// Reason is the custom error's name, which says what was wrong, without its selector or arguments: it can be told to a peer.
func (r *Revert) Reason() string {
	if r.Name == "" {
		return "no reason given"
	}
	return r.Name
}

// Refusal says which contract refused, in its own words, and what to do about it where that is known. It can be told to a
// peer. The escrow has names for what it refuses: reasons in plain text, and none at all, are the token's.
func (r *Revert) Refusal() string {
	reason := r.Reason()
	switch {
	case r.Name == "Error" && len(r.Args) == 1:
		reason = clip(fmt.Sprint(r.Args[0]))
	case r.Name == "TransferFromFailed", r.Name == "TransferFailed", r.Name == "DepositMismatch", r.Name == "", r.Name == "Panic":
	default:
		return "the escrow refuses it: " + reason
	}
	return fmt.Sprintf("the token refuses it: %s; %s", reason, refusal.Token(r.Name+" "+reason))
}

func show(arg any) string {
	switch v := arg.(type) {
	case [32]byte:
		return common.Hash(v).Hex()
	case []byte:
		return hexutil.Encode(v)
	default:
		return fmt.Sprint(v)
	}
}

// revertCode is the JSON-RPC error code of a call that ran and reverted.
const revertCode = 3

var (
	escrowErrors  = mustParse(bindings.ChannelEscrowMetaData.ParseABI())
	settlementABI = mustParse(batchsettlement.BatchSettlementMetaData.ParseABI())
)

// BatchSettlementABI is the interface of x402's contract, by which calls of it are read. It is shared: nobody changes it.
func BatchSettlementABI() *abi.ABI { return settlementABI }

func mustParse(parsed *abi.ABI, err error) *abi.ABI {
	if err != nil {
		panic("chain: the generated bindings do not parse: " + err.Error())
	}
	return parsed
}

// decode turns the error of a call into a *Revert if the contract refused it, into ErrUnreachable if the endpoint failed,
// and leaves any other error as it is.
func decode(err error) error {
	if data, ok := revertData(err); ok {
		return parseRevert(data)
	}
	if isTransport(err) && !errors.Is(err, context.Canceled) && !errors.Is(err, ErrUnreachable) {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	return err
}

func revertData(err error) ([]byte, bool) {
	var coded rpc.Error
	reverted := errors.As(err, &coded) && coded.ErrorCode() == revertCode
	var carrier rpc.DataError
	if errors.As(err, &carrier) {
		if text, ok := carrier.ErrorData().(string); ok {
			if data, err := hexutil.Decode(text); err == nil {
				return data, true
			}
		}
	}
	return nil, reverted || (coded != nil && strings.Contains(coded.Error(), "execution reverted"))
}

func parseRevert(data []byte) *Revert {
	r := &Revert{Data: data}
	if len(data) < 4 { // shorter than a selector: the generated decoder would panic on it
		return r
	}
	if reason, err := abi.UnpackRevert(data); err == nil {
		r.Name, r.Args = "Error", []any{reason}
		return r
	}
	for _, contract := range []*abi.ABI{escrowErrors, settlementABI} {
		known, err := contract.ErrorByID([4]byte(data[:4]))
		if err != nil {
			continue
		}
		if args, err := known.Inputs.Unpack(data[4:]); err == nil {
			r.Name, r.Args = known.Name, args
		}
		return r
	}
	return r
}

// isTransport reports whether err says that the endpoint failed, as against that it answered with an error.
func isTransport(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, ErrAnswer) || errors.Is(err, ErrContradiction) {
		return true
	}
	var quoted *url.Error
	var op net.Error
	var status rpc.HTTPError
	if errors.As(err, &status) {
		return status.StatusCode != http.StatusBadRequest
	}
	return errors.As(err, &quoted) || errors.As(err, &op) || errors.Is(err, rpc.ErrClientQuit)
}
