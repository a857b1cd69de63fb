package ledger

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/sdk/units"
)

// Columns are the columns of a CSV, and the keys of an object of JSON, in order. gpu_seconds has nine decimals, exactly the nanoseconds
// that were metered; amount is amount_base_units in units of the token; gas_wei is in wei of the chain's coin.
var Columns = []string{"kind", "time", "counterparty", "channel", "transaction", "block", "lease", "detail", "gpu_seconds", "amount_base_units", "amount", "token", "gas_wei"}

// fields are a line's values. What a line has not is empty.
func (b *Books) fields(e Entry) ([]string, error) {
	var gpu, base, amount, gas string
	if e.Kind == Lease {
		gpu = fmt.Sprintf("%d.%09d", e.Nanos/uint64(time.Second), e.Nanos%uint64(time.Second))
	}
	if e.Kind != Gas {
		decimals, known := b.Decimals[e.Token]
		if !known {
			return nil, fmt.Errorf("how many decimals token %s has is not known: amounts would be off by powers of ten", e.Token)
		}
		base, amount = e.Amount.Dec(), units.Format(e.Amount, decimals)
	}
	if e.Gas != nil {
		gas = e.Gas.String()
	}
	return []string{string(e.Kind), e.Time.Format(time.RFC3339Nano), address(e.Counterparty), hash(e.Channel), hash(e.Transaction), number(e.Block),
		hash(e.Lease), e.Detail, gpu, base, amount, address(e.Token), gas}, nil
}

// WriteCSV writes a header and the lines. Every token must be in Decimals.
func (b *Books) WriteCSV(w io.Writer) error {
	out := csv.NewWriter(w)
	if err := out.Write(Columns); err != nil {
		return err
	}
	for _, e := range b.Entries {
		fields, err := b.fields(e)
		if err == nil {
			err = out.Write(fields)
		}
		if err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

// WriteJSON writes one object a line (JSON Lines), with a CSV's columns as keys, their values as strings, and without those that are
// empty. Every token must be in Decimals.
func (b *Books) WriteJSON(w io.Writer) error {
	out := json.NewEncoder(w)
	for _, e := range b.Entries {
		fields, err := b.fields(e)
		if err != nil {
			return err
		}
		object := make(map[string]string)
		for i, field := range fields {
			if field != "" {
				object[Columns[i]] = field
			}
		}
		if err := out.Encode(object); err != nil {
			return err
		}
	}
	return nil
}

func address(a common.Address) string {
	if a == (common.Address{}) {
		return ""
	}
	return a.Hex()
}

func hash(h common.Hash) string {
	if h == (common.Hash{}) {
		return ""
	}
	return h.Hex()
}

func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}
