// Package audit checks what a payer and a payee kept about channels, from their files alone or beside the chain, and asks
// neither of them.
package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"os"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/chain"
)

// ErrUnknown is of a file that cannot be read, or is nothing that can be checked.
var ErrUnknown = errors.New("nothing that can be checked")

// Result is how many checks there were.
type Result struct {
	Checks, Failed int
	Look           int // hold, and say what is to be looked at
	Bundles        int // channels; the other files are proofs, which need no chain
	// Equivocations prove that a payee signed two records, or offers, that contradict each other.
	Equivocations []*Equivocation
}

// Files checks bundles, and proofs of equivocation; what a file is, it says itself. Several bundles of one channel are held
// against each other, and those of two channels are searched for a GPU that was billed in both at once. backend may be nil:
// amounts are not compared with the chain's then. each hears of every check as it is made.
func Files(ctx context.Context, paths []string, backend chain.Backend, each func(Check)) (Result, error) {
	v := verification{each: each}
	for _, path := range paths {
		if err := v.file(path); err != nil {
			return v.Result, fmt.Errorf("%s: %w", path, err)
		}
	}
	v.bundles = Join(v.bundles)
	if err := checkChain(ctx, backend, v.bundles); err != nil {
		return v.Result, err
	}
	for _, b := range v.bundles {
		for _, c := range Verify(ctx, b, backend) {
			v.line(c)
		}
	}
	for _, c := range VerifyTogether(v.bundles) {
		v.line(c)
	}
	v.equivocations()
	v.Bundles = len(v.bundles)
	return v.Result, nil
}

// checkChain refuses an endpoint that serves another chain than a bundle is of: what is not there proves nothing.
func checkChain(ctx context.Context, backend chain.Backend, bundles []*Bundle) error {
	if backend == nil || len(bundles) == 0 {
		return nil
	}
	id, err := backend.ChainID(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", chain.ErrUnreachable, err)
	}
	for _, b := range bundles {
		if want := new(big.Int).SetUint64(b.Terms.ChainID); id.Cmp(want) != 0 {
			return fmt.Errorf("%w: channel %s is on chain %s, the endpoint serves %s: name one of that chain", chain.ErrChainID, b.Channel, want, id)
		}
	}
	return nil
}

type verification struct {
	each    func(Check)
	bundles []*Bundle
	Result
}

// file reads one file, whichever it is. A proof is checked at once, bundles when all
// of a channel's are there.
func (v *verification) file(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return unknown{err}
	}
	var header struct{ Kind string }
	if err := json.Unmarshal(raw, &header); err != nil {
		return unknown{fmt.Errorf("it is no bundle: not JSON: %w", err)}
	}
	if header.Kind == EquivocationKind {
		v.proof(raw)
		return nil
	}
	b, err := Parse(raw)
	if err != nil {
		return unknown{err}
	}
	v.bundles = append(v.bundles, b)
	return nil
}

func (v *verification) proof(raw []byte) {
	c := Check{Name: "equivocation"}
	p, err := ParseEquivocation(raw)
	if c.Err = err; err == nil {
		payee, _ := p.Verify()
		c.Detail = fmt.Sprintf("payee %s signed two different %s", payee, p.Subject())
	}
	v.line(c)
}

func (v *verification) line(c Check) {
	v.Checks++
	switch {
	case c.Err != nil:
		v.Failed++
	case c.Look != "":
		v.Look++
	}
	if c.Name == "contract" && errors.Is(c.Err, channel.ErrUnknown) {
		c.Err = fmt.Errorf("%w there: this chain is another one than the bundle's, or it was started anew since", c.Err)
	}
	v.each(c)
}

// equivocations looks for records that contradict each other, in a payer's
// evidence and between bundles. One is a failure, and a proof.
func (v *verification) equivocations() {
	for i, b := range v.bundles {
		v.Equivocations = append(v.Equivocations, b.Equivocations()...)
		for _, other := range v.bundles[:i] {
			if other.Channel != b.Channel { // VerifyTogether holds those against each other
				continue
			}
			both := Compare(other, b)
			v.Equivocations = append(v.Equivocations, both.Equivocations...)
			for _, c := range both.Checks {
				v.line(c)
			}
		}
	}
	for _, p := range v.Equivocations {
		v.line(Check{Name: "one word", Err: fmt.Errorf("the payee signed two different %s", p.Subject())})
	}
}

// unknown is an error that is ErrUnknown.
type unknown struct{ error }

func (u unknown) Unwrap() []error { return []error{u.error, ErrUnknown} }

// Encode is a document, a bundle or a proof, as it is written down: it steers no terminal that shows it.
func Encode(v any) ([]byte, error) {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(escaped(raw), '\n'), nil
}

// escaped is a JSON document that steers no terminal, and says the same: in its texts, which are strangers', JSON itself leaves
// some control characters as they are.
func escaped(document []byte) []byte {
	plain := make([]byte, 0, len(document))
	for _, r := range string(document) {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			plain = utf8.AppendRune(plain, r)
		default:
			for _, unit := range utf16.AppendRune(nil, r) {
				plain = fmt.Appendf(plain, `\u%04x`, unit)
			}
		}
	}
	return plain
}
