// Command verify checks what a payer and a payee kept about a channel, without
// asking either:
//
//	verify bundle.json                        everything that can be checked offline
//	verify --rpc URL bundle.json              the amounts on the chain as well
//	verify payer.json payee.json              and whether both say the same
//	verify one.json two.json                  of two channels: and whether a GPU was billed in both at once
//	verify archive/0x12..*.json               what an archive has of one channel, as one bundle
//	verify equivocation.json                  a proof that it did not
//	verify export --db FILE --channel ID      write the bundle of a channel, or of a lease's; of a renter's newest without
//
// It prints one line a check and one with the verdict, and exits with 1 if one of them failed.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk"
	"github.com/gpupay/gpupay/sdk/chain"
)

func main() {
	cli.Main(func(ctx context.Context) error { return run(ctx, os.Args[1:], os.Stdout) })
}

// about is what --help begins with.
const about = `checks what a payer and a payee kept about a channel, without asking either.

  verify [flags] FILE ..        check bundles, and proofs of equivocation: several of one channel against each other
  verify export --db FILE ..    write the bundle of a channel from a database (verify export --help)

It prints one line a check, and at the end whether all of them hold; it exits with 1 if one does not.
`

var errFailed = errors.New("not everything holds")

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "export" {
		return export(ctx, args[1:], out)
	}
	flags := flag.NewFlagSet("verify", flag.ContinueOnError)
	cli.About(flags, about)
	rpc := flags.String("rpc", "", "compare with the chain behind this JSON-RPC `URL`, or several with commas between them; only offline checks if empty")
	proofs := flags.String("equivocation", "", "where to write a proof of equivocation, if there is one (`path`)")
	files, err := interleaved(flags, args, out)
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("name a bundle or a proof of equivocation (--help says more)")
	}
	var backend chain.Backend
	if *rpc != "" {
		if backend, err = chain.Connect(ctx, *rpc, nil); err != nil {
			return err
		}
	}
	v := verification{out: out}
	for _, path := range files {
		if err := v.file(path); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	v.bundles = sdk.JoinBundles(v.bundles)
	for _, b := range v.bundles {
		for _, c := range sdk.VerifyBundle(ctx, b, backend) {
			v.line(c)
		}
	}
	for _, c := range sdk.VerifyTogether(v.bundles) {
		v.line(c)
	}
	if err := v.equivocations(*proofs); err != nil {
		return err
	}
	return v.verdict(backend != nil)
}

// verdict is the last line.
func (v *verification) verdict(asked bool) error {
	if v.failed > 0 {
		return fmt.Errorf("%w: %d of %d checks failed", errFailed, v.failed, v.checks)
	}
	with := "with what the chain says"
	switch {
	case len(v.bundles) == 0: // a proof stands alone
		with = "a proof needs no chain"
	case !asked:
		with = "offline: --rpc compares with the chain too"
	}
	look := ""
	if v.look > 0 {
		look = fmt.Sprintf("; look at the %d that say LOOK", v.look)
	}
	fmt.Fprintf(v.out, "verified: all %d checks hold (%s)%s\n", v.checks, with, look)
	return nil
}

// interleaved parses flags that may stand after files, too: what does not say that
// the chain was asked would be taken for a check that passed.
func interleaved(flags *flag.FlagSet, args []string, help io.Writer) (files []string, err error) {
	for len(args) > 0 && err == nil {
		if err = cli.ParseFlags(flags, args, help); err == nil && flags.NArg() > 0 {
			files, args = append(files, flags.Arg(0)), flags.Args()[1:]
			continue
		}
		break
	}
	return files, err
}

type verification struct {
	out     io.Writer
	bundles []*sdk.Bundle

	checks, failed, look int
}

// file reads one file, whichever it is. A proof is checked at once, bundles when all
// of a channel's are there.
func (v *verification) file(path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var header struct{ Kind string }
	if err := json.Unmarshal(raw, &header); err != nil {
		return fmt.Errorf("it is no bundle: not JSON: %w", err)
	}
	if header.Kind == sdk.EquivocationKind {
		v.proof(raw)
		return nil
	}
	b, err := sdk.ParseBundle(raw)
	if err != nil {
		return err
	}
	v.bundles = append(v.bundles, b)
	return nil
}

func (v *verification) proof(raw []byte) {
	c := sdk.Check{Name: "equivocation"}
	p, err := sdk.ParseEquivocationProof(raw)
	if c.Err = err; err == nil {
		payee, _ := p.Verify()
		c.Detail = fmt.Sprintf("payee %s signed two different %s", payee, p.Subject())
	}
	v.line(c)
}

func (v *verification) line(c sdk.Check) {
	v.checks++
	switch {
	case c.Err != nil:
		v.failed++
	case c.Look != "":
		v.look++
	}
	if c.Name == "contract" && errors.Is(c.Err, channel.ErrUnknown) {
		c.Err = fmt.Errorf("%w there: this chain is another one than the bundle's, or it was started anew since", c.Err)
	}
	fmt.Fprintln(v.out, c)
}

// equivocations looks for records that contradict each other, in a payer's
// evidence and between bundles. One is a failure, and a proof.
func (v *verification) equivocations(path string) error {
	var found []*sdk.EquivocationProof
	for i, b := range v.bundles {
		found = append(found, b.Equivocations()...)
		for _, other := range v.bundles[:i] {
			if other.Channel != b.Channel { // VerifyTogether holds those against each other
				continue
			}
			both := sdk.CompareBundles(other, b)
			found = append(found, both.Equivocations...)
			for _, c := range both.Checks {
				v.line(c)
			}
		}
	}
	for _, p := range found {
		v.line(sdk.Check{Name: "one word", Err: fmt.Errorf("the payee signed two different %s", p.Subject())})
	}
	if len(found) == 0 || path == "" {
		return nil
	}
	return write(path, found[0], v.out)
}

// export writes a bundle from a provider's or a renter's database.
func export(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("verify export", flag.ContinueOnError)
	cli.About(flags, "writes the bundle of one channel from the database of its provider or its renter, which may run meanwhile.\n\n")
	db := flags.String("db", "", "a provider's or a renter's database (`path`)")
	channelID := flags.String("channel", "", "the channel's `id`; without it the newest of a renter, or the only one of a provider")
	lease := flags.String("lease", "", "a lease's `id`, instead of the channel's")
	path := flags.String("out", "", "where to write the bundle (`path`); stdout if empty")
	if err := cli.ParseFlags(flags, args, out); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("export: %q is not a flag: --out is where the bundle is written", flags.Arg(0))
	}
	named := *channelID + *lease
	id := common.HexToHash(named)
	switch {
	case *db == "":
		return errors.New("export: --db is empty: give the path of a provider's or a renter's database")
	case *channelID != "" && *lease != "", named != "" && id.Hex() != named:
		return errors.New("export: give --channel or --lease, with an id of 0x and 64 hex digits")
	}
	b, err := sdk.ExportFile(ctx, *db, id)
	switch {
	case err != nil && named == "":
		return fmt.Errorf("%w (--channel or --lease names one)", err)
	case err != nil:
		return err
	case named == "": // beside the bundle, which may go to stdout
		fmt.Fprintf(os.Stderr, "exporting channel %s of %s, the newest that is there: --channel names another one\n", b.Channel, redact.Database(*db))
	}
	return write(*path, b, out)
}

func write(path string, v any, out io.Writer) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	raw = append(escaped(raw), '\n')
	if path == "" {
		_, err = out.Write(raw)
		return err
	}
	return os.WriteFile(path, raw, 0o600)
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
