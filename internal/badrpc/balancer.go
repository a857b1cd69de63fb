package badrpc

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/ethereum/go-ethereum/common"
)

// Balance makes the endpoint a balancer of two nodes that take turns, one of which is some blocks behind the other: it
// knows neither the newest blocks, nor what they changed, nor the receipts in them. 0 ends it. Some methods it may answer always.
func (e *Endpoint) Balance(behind uint64, always ...string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.behind, e.turns, e.always = behind, 0, always
}

// Stick makes the endpoint a node that has stopped following the chain: it answers as of this block, and takes transactions
// without passing them on. 0 ends it.
func (e *Endpoint) Stick(at uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stuck = at
}

// swallowed answers what a node that is stuck takes and passes on to nobody.
func (e *Endpoint) swallowed(x *Exchange) bool {
	if x.Method != "eth_sendRawTransaction" || e.stuckNow() == 0 {
		return false
	}
	x.Result = encode(common.Hash{1})
	return true
}

func (e *Endpoint) stuckNow() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stuck
}

// knows is the newest block of the node that answers the next request; ok is false where that is the chain's.
func (e *Endpoint) knows(method string) (known uint64, ok bool) {
	if stuck := e.stuckNow(); stuck != 0 {
		return stuck, true
	}
	behind := e.late(method)
	if behind == 0 {
		return 0, false
	}
	head, err := e.head()
	return head - min(head, behind), err == nil
}

// late reports by how much the node is behind that answers the next request.
func (e *Endpoint) late(method string) uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.turns++; e.turns%2 == 0 && !slices.Contains(e.always, method) {
		return 0
	}
	return e.behind
}

// tags says which parameter of a method names a block.
var tags = map[string]int{
	"eth_call": 1, "eth_estimateGas": 1, "eth_getBalance": 1, "eth_getCode": 1, "eth_getTransactionCount": 1, "eth_getBlockByNumber": 0,
}

// lagging rewrites a request so that the node answers it as one that is behind; it answers at once what that one would not
// know.
func (e *Endpoint) lagging(x *Exchange, body []byte) ([]byte, bool) {
	known, late := e.knows(x.Method)
	at, named := tags[x.Method]
	if !late || !named {
		return body, false
	}
	var asked message
	var params []json.RawMessage
	if json.Unmarshal(body, &asked) != nil || json.Unmarshal(asked.Params, &params) != nil {
		return body, false
	}
	tag := "latest"
	if len(params) > at {
		tag = strings.Trim(string(params[at]), `"`)
	} else {
		params = append(params, nil)
	}
	switch n, err := strconv.ParseUint(strings.TrimPrefix(tag, "0x"), 16, 64); {
	case tag == "latest" || tag == "pending":
		params[at] = encode(fmt.Sprintf("0x%x", known))
	case err == nil && n > known && x.Method == "eth_getBlockByNumber":
		Null(x)
		return body, true
	case err == nil && n > known:
		Fail(-32000, "header not found")(x)
		return body, true
	default:
		return body, false
	}
	asked.Params = encode(params)
	return encode(asked), false
}

// behindToo takes from an answer what a node that is behind does not know.
func (e *Endpoint) behindToo(x *Exchange) {
	stuck := e.stuckNow() != 0
	if !stuck && e.behindNow() == 0 {
		return
	}
	switch x.Method {
	case "eth_blockNumber", "eth_getTransactionReceipt":
	case "eth_getTransactionByHash", "eth_getBlockByHash", "eth_getLogs":
		if !stuck {
			return
		}
	default:
		return
	}
	known, late := e.knows(x.Method)
	if !late {
		return
	}
	switch x.Method {
	case "eth_blockNumber":
		x.Result = encode(fmt.Sprintf("0x%x", known))
	case "eth_getLogs":
		var logs []json.RawMessage
		_ = json.Unmarshal(x.Result, &logs)
		x.Result = encode(slices.DeleteFunc(logs, func(raw json.RawMessage) bool { return blockOf(raw) > known }))
	default:
		if blockOf(x.Result) > known {
			Null(x)
		}
	}
}

// blockOf is the block that an answer is of, or is; 0 if it says none.
func blockOf(raw json.RawMessage) uint64 {
	var said struct{ BlockNumber, Number string }
	_ = json.Unmarshal(raw, &said)
	n, _ := strconv.ParseUint(strings.TrimPrefix(cmp.Or(said.BlockNumber, said.Number), "0x"), 16, 64)
	return n
}

func (e *Endpoint) behindNow() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.behind
}

// head asks the node for its newest block.
func (e *Endpoint) head() (uint64, error) {
	resp, err := http.Post(e.target, "application/json", strings.NewReader(`{"jsonrpc":"2.0","id":1,"method":"eth_blockNumber","params":[]}`))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	var said struct {
		Result string `json:"result"`
	}
	if err := json.Unmarshal(raw, &said); err != nil {
		return 0, err
	}
	return strconv.ParseUint(strings.TrimPrefix(said.Result, "0x"), 16, 64)
}
