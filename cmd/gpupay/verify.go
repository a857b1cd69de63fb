package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	urfave "github.com/urfave/cli/v3"

	"github.com/gpupay/gpupay/internal/cli"
	"github.com/gpupay/gpupay/sdk/audit"
	"github.com/gpupay/gpupay/sdk/chain"
)

// statusUnknown is the exit status where there is no verdict: a file is not known, or the chain could not be asked.
const statusUnknown = 2

type noVerdict struct{ error }

func (n noVerdict) Unwrap() error { return n.error }
func (noVerdict) Status() int     { return statusUnknown }

// verify checks what a payer and a payee kept about a channel, without asking either.
type verify struct {
	flags       *cli.Flags
	export      export
	rpc, proofs string
	out         io.Writer
}

const verifyMore = `Files are bundles, or proofs of equivocation, which prove that a payee signed two different records; what a file is, it says
itself. It prints one line a check, and at the end whether all of them hold.

   gpupay verify bundle.json                 everything that can be checked offline
   gpupay verify --rpc URL bundle.json       the amounts on the chain as well
   gpupay verify payer.json payee.json       and whether both say the same
   gpupay verify one.json two.json           of two channels: and whether a GPU was billed in both at once
   gpupay verify archive/0x12..*.json        what an archive has of one channel, as one bundle
   gpupay verify export --db FILE            write the bundle of a channel from a database

Exit status: 0 all checks hold, 1 one failed, 2 a file is not known or the chain cannot be asked, 64 wrong usage.`

func newVerify(app *cli.App) *verify {
	v := &verify{flags: app.Flags("verify", "verify"), out: os.Stdout}
	f := v.flags
	f.Args("FILE ..")
	f.Actions("")
	f.Text(&v.rpc, "rpc", "", "compare with the chain behind this JSON-RPC `URL`, or several with commas between them; only offline checks if empty")
	f.Text(&v.proofs, "equivocation", "", "where to write a proof of equivocation, if there is one (`path`)")
	v.export.register(app)
	return v
}

func (v *verify) command() *urfave.Command {
	return v.flags.Command("check what either side kept, without trusting either", verifyMore, v.run, v.export.command())
}

func (v *verify) run(ctx context.Context, files []string) (err error) {
	if len(files) == 0 {
		return cli.Usage(errors.New("name a bundle or a proof of equivocation (--help says more)"))
	}
	var backend chain.Backend
	if v.rpc != "" {
		if backend, err = chain.Connect(ctx, v.rpc, nil); err != nil {
			return noVerdict{err}
		}
	}
	result, err := audit.Files(ctx, files, backend, func(c audit.Check) { fmt.Fprintln(v.out, c) })
	if err != nil {
		return noVerdict{err}
	}
	if len(result.Equivocations) > 0 && v.proofs != "" {
		if err := write(v.proofs, result.Equivocations[0], v.out); err != nil {
			return err
		}
	}
	return v.verdict(result)
}

// verdict is the last line.
func (v *verify) verdict(r audit.Result) error {
	if r.Failed > 0 {
		return fmt.Errorf("not everything holds: %d of %d checks failed", r.Failed, r.Checks)
	}
	with, look := "with what the chain says", ""
	switch {
	case r.Bundles == 0: // a proof stands alone
		with = "a proof needs no chain"
	case v.rpc == "":
		with = "offline: --rpc compares with the chain too"
	}
	if r.Look > 0 {
		look = fmt.Sprintf("; look at the %d that say LOOK", r.Look)
	}
	fmt.Fprintf(v.out, "verified: all %d checks hold (%s)%s\n", r.Checks, with, look)
	return nil
}

func write(path string, v any, out io.Writer) error {
	raw, err := audit.Encode(v)
	if err != nil {
		return err
	}
	if path == "" {
		_, err = out.Write(raw)
		return err
	}
	return os.WriteFile(path, raw, 0o600)
}
