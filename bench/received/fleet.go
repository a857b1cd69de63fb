package received

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"

	"github.com/gpupay/gpupay/bench"
)

// fleet is several gateways on one database, each a process of its own with its
// share of the channels and their payers.
type fleet struct {
	book      *book
	flight    int
	processes []*process
	done      int   // vouchers of each channel that count
	auditor   *ours // of this process: it pays and takes nothing
}

// process is one gateway, as the one that started it sees it.
type process struct {
	command *exec.Cmd
	input   io.Closer
	orders  *gob.Encoder
	reports *gob.Decoder
	mine    []int // channels, by their place in the book
	sent    int   // vouchers of each that it has
	used    bench.Usage
}

func openFleet(ctx context.Context, b *book, address string, gateways, flight int) (_ *fleet, err error) {
	f := &fleet{book: b, flight: flight}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	if f.auditor, err = openOurs(ctx, b.domain, address); err != nil {
		return nil, err
	}
	if err := b.open(ctx, f.auditor.payee); err != nil {
		return nil, err
	}
	for n := range min(gateways, len(b.terms)) {
		p, err := startProcess(ctx)
		if err != nil {
			return nil, err
		}
		f.processes = append(f.processes, p)
		a := assignment{ChainID: b.domain.ChainID(), Escrow: b.domain.Escrow(), Address: address, Flight: flight}
		for c := n; c < len(b.terms); c += gateways {
			p.mine, a.Terms = append(p.mine, c), append(a.Terms, b.terms[c])
		}
		if err := p.ask(a); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func startProcess(ctx context.Context) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	command := exec.CommandContext(ctx, self)
	command.Env = append(os.Environ(), processVariable+"=1")
	command.Stderr = os.Stderr
	input, err := command.StdinPipe()
	if err != nil {
		return nil, err
	}
	output, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, err
	}
	return &process{command: command, input: input, orders: gob.NewEncoder(input), reports: gob.NewDecoder(output)}, nil
}

// ask gives an assignment or an order and waits until it is carried out.
func (p *process) ask(what any) error {
	if err := p.orders.Encode(what); err != nil {
		return fmt.Errorf("a gateway's process takes no orders: %w", err)
	}
	var r report
	if err := p.reports.Decode(&r); err != nil {
		return fmt.Errorf("a gateway's process ended: %w", err)
	}
	if r.Problem != "" {
		return fmt.Errorf("a gateway's process: %s", r.Problem)
	}
	p.used = r.Used
	return nil
}

func (f *fleet) contender(name string, _ bool) bench.Contender {
	return bench.Contender{Name: name, Step: len(f.book.terms) * f.flight, Prepare: f.prepare, Run: f.run, Elsewhere: f.used}
}

// prepare signs, and hands each process what it lacks.
func (f *fleet) prepare(n int) error {
	want := f.done + n/len(f.book.terms)
	if err := f.book.fill(want); err != nil {
		return err
	}
	return f.each(func(p *process) error {
		var o order
		for _, c := range p.mine {
			o.Vouchers = append(o.Vouchers, f.book.vouchers[c][p.sent:want])
		}
		p.sent = want
		return p.ask(o)
	})
}

func (f *fleet) run(_ context.Context, n int) error {
	each := n / len(f.book.terms)
	f.done += each
	return f.each(func(p *process) error { return p.ask(order{Pay: each * len(p.mine)}) })
}

// each has all processes do something at the same time.
func (f *fleet) each(do func(*process) error) error {
	failed := make([]error, len(f.processes))
	var wait sync.WaitGroup
	for i, p := range f.processes {
		wait.Go(func() { failed[i] = do(p) })
	}
	wait.Wait()
	return errors.Join(failed...)
}

// used is as of the last order: nothing is done without one.
func (f *fleet) used() bench.Usage {
	var sum bench.Usage
	for _, p := range f.processes {
		sum.Allocs += p.used.Allocs
		sum.Bytes += p.used.Bytes
		sum.Processor += p.used.Processor
	}
	return sum
}

// check asks the database by a handle that took no voucher.
func (f *fleet) check(ctx context.Context) error {
	return errors.Join(f.book.check(ctx, f.auditor, f.done), f.close())
}

func (f *fleet) close() error {
	var err error
	for _, p := range f.processes {
		err = errors.Join(err, p.input.Close(), p.command.Wait())
	}
	if f.auditor != nil {
		err = errors.Join(err, f.auditor.close())
	}
	return err
}

var _ runner = (*fleet)(nil)
