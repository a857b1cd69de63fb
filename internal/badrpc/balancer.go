package badrpc

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Balance makes the endpoint a balancer of two nodes that take turns, one of which is some blocks behind the other: it
// knows neither the newest blocks, nor what they changed, nor the receipts in them. 0 ends it.
func (e *Endpoint) Balance(behind uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.behind, e.turns = behind, 0
}

// late reports by how much the node is behind that answers the next request.
func (e *Endpoint) late() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.turns++; e.turns%2 == 0 {
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
	behind := e.late()
	at, named := tags[x.Method]
	if behind == 0 || !named {
		return body, false
	}
	head, err := e.head()
	if err != nil {
		return body, false
	}
	known := head - min(head, behind)
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
	if x.Method != "eth_blockNumber" && x.Method != "eth_getTransactionReceipt" || e.behindNow() == 0 {
		return
	}
	behind := e.late()
	head, err := e.head()
	if behind == 0 || err != nil {
		return
	}
	known := head - min(head, behind)
	if x.Method == "eth_blockNumber" {
		x.Result = encode(fmt.Sprintf("0x%x", known))
		return
	}
	var receipt struct {
		Block string `json:"blockNumber"`
	}
	if json.Unmarshal(x.Result, &receipt) != nil {
		return
	}
	if n, err := strconv.ParseUint(strings.TrimPrefix(receipt.Block, "0x"), 16, 64); err == nil && n > known {
		Null(x)
	}
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
