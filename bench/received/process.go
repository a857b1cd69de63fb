package received

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/bench"
	"github.com/gpupay/gpupay/channel"
)

// processVariable makes a program that calls Gateway one of several gateways.
const processVariable = "GPUPAY_BENCH_GATEWAY"

// Gateway is the first call of every program that measures the gateways of a
// fleet, since they are processes of that program. In one of them it does the
// work and ends the process; otherwise it returns.
func Gateway() {
	if os.Getenv(processVariable) == "" {
		return
	}
	if err := serve(context.Background(), os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench: a gateway's process:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// assignment is the first thing that a gateway's process is told.
type assignment struct {
	ChainID uint64
	Escrow  common.Address
	Address string // of the database
	Terms   []channel.Terms
	Flight  int
}

// order is what it is told after that: to keep vouchers ready, or to have its
// payers pay so many of those it has.
type order struct {
	Vouchers [][]channel.Voucher // by channel
	Pay      int
}

// report answers an assignment and each order.
type report struct {
	Used    bench.Usage
	Problem string
}

// serve is a gateway with its own payers. Its vouchers reach it before the clock
// runs, so that nothing but the word to begin and the answer goes between the
// processes while it does. It ends with its input.
func serve(ctx context.Context, in io.Reader, out io.Writer) (err error) {
	orders, reports := gob.NewDecoder(in), gob.NewEncoder(out)
	var a assignment
	if err := orders.Decode(&a); err != nil {
		return err
	}
	b := &book{domain: channel.EscrowDomain(a.ChainID, a.Escrow), terms: a.Terms, vouchers: make([][]channel.Voucher, len(a.Terms))}
	o, err := openOurs(ctx, b.domain, a.Address)
	if err != nil {
		return errors.Join(err, reports.Encode(report{Problem: err.Error()}))
	}
	defer func() { err = errors.Join(err, o.close()) }()
	l := &load{book: b, flight: a.Flight, stream: true, to: o}
	for {
		if err := reports.Encode(report{Used: bench.Used()}); err != nil {
			return err
		}
		var next order
		if err := orders.Decode(&next); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := l.obey(ctx, next); err != nil {
			return errors.Join(err, reports.Encode(report{Problem: err.Error()}))
		}
	}
}

func (l *load) obey(ctx context.Context, next order) error {
	for c, more := range next.Vouchers {
		l.book.vouchers[c] = append(l.book.vouchers[c], more...)
	}
	if next.Pay > 0 {
		return l.run(ctx, next.Pay)
	}
	runtime.GC() // what decoding left behind is not the payments'
	return nil
}
