package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/provider"
)

// Options are what a gateway is started with.
type Options struct {
	RPC      string
	Token    common.Address
	Database string
	Leases   int
	Tick     time.Duration
	Period   time.Duration // between two records of a lease
}

// Started is what a gateway says when it serves.
type Started struct {
	URL  string
	Took time.Duration // to take the leases up
}

const price = "3.60" // an hour: 1,000 base units a second

func (o Options) config(key channel.Signer) (provider.Config, error) {
	return provider.Config{
		RPC: o.RPC, Escrow: escrow, Token: o.Token, Key: key, Database: o.Database, PricePerGPUHour: price,
		Source: sim.New(o.Leases, sim.Options{}), Allocator: keeper{}, Deposits: provider.Deposits{Min: "1"},
		Metering: provider.Metering{Tick: o.Tick, MaxGap: 3 * o.Tick, RecordEvery: o.Period}, Terms: provider.Terms{Credit: time.Hour},
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}, nil
}

// serve is the gateway: it reads its options from in, writes what it has to say to out, and serves until the context ends.
func serve(ctx context.Context, in io.Reader, out io.Writer) error {
	var o Options
	if err := json.NewDecoder(in).Decode(&o); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	key, err := channel.KeyFromEnv(keyEnv)
	if err != nil {
		return err
	}
	config, err := o.config(key)
	if err != nil {
		return err
	}
	lag := newLag(config.Source, o, config.Metering.MaxGap)
	config.Source = lag
	begun := time.Now()
	p, err := provider.New(ctx, config)
	if err != nil {
		return err
	}
	took := time.Since(begun)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, p.Close())
	}
	server := &http.Server{Handler: routes(p, lag), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 2)
	go func() { ended <- p.Run(ctx) }()
	go func() { ended <- server.Serve(listener) }()
	if err := json.NewEncoder(out).Encode(Started{URL: "http://" + listener.Addr().String(), Took: took}); err != nil {
		return err
	}
	return errors.Join(<-ended, server.Close(), p.Close())
}

// routes are the provider's, and how late its devices are read.
func routes(p *provider.Server, lag *lag) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", p)
	mux.Handle("GET /lag", lag)
	return mux
}

// keeper is an allocator whose devices stay where they are: what a command of an operator costs is not measured here.
type keeper struct{}

var _ gpu.Adopter = keeper{}

func (keeper) Allocate(context.Context, gpu.Request) (gpu.Allocation, error) {
	return gpu.Allocation{}, gpu.ErrNoCapacity
}
func (keeper) Suspend(context.Context, gpu.Allocation) error { return nil }
func (keeper) Resume(context.Context, gpu.Allocation) error  { return nil }
func (keeper) Release(context.Context, gpu.Allocation) error { return nil }
func (keeper) Adopt(context.Context, gpu.Allocation) error   { return nil }

// lag is a source that notes how late each device is read: how much longer than a tick it was not read before.
type lag struct {
	metering.Source
	tick, maxGap time.Duration
	last         []atomic.Int64          // monotonic time of the reading before, by device
	counts       [lateSteps]atomic.Int64 // readings, by how late they were
	over         atomic.Int64            // those after more than maxGap
	unbilled     atomic.Int64            // nanoseconds in them
	longest      atomic.Int64            // between two readings of a device
}

const (
	lateSteps = 4096
	lateStep  = time.Millisecond
)

// devicePrefix is what the names of simulated devices have before their number.
var devicePrefix = strings.TrimSuffix(sim.UUID(0), "0")

// LagReport is what a gateway says of the readings since it was asked last.
type LagReport struct {
	Readings int64
	P50, P99 time.Duration // late by no more than this
	Longest  time.Duration // between two readings of a device
	Over     int64         // longer than MaxGap
	Unbilled time.Duration // in those
}

func newLag(s metering.Source, o Options, maxGap time.Duration) *lag {
	return &lag{Source: s, tick: o.Tick, maxGap: maxGap, last: make([]atomic.Int64, o.Leases)}
}

func (l *lag) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	r, err := l.Source.Read(ctx, uuid)
	if err != nil {
		return r, err
	}
	number, err := strconv.Atoi(strings.TrimPrefix(uuid, devicePrefix))
	if err != nil || number >= len(l.last) {
		return r, fmt.Errorf("%w: %s", metering.ErrDevice, uuid)
	}
	before := l.last[number].Swap(r.At.Mono)
	if before == 0 {
		return r, nil
	}
	since := r.At.Mono - before
	late := max(since-int64(l.tick), 0)
	l.counts[min(late/int64(lateStep), lateSteps-1)].Add(1)
	if since > int64(l.maxGap) {
		l.over.Add(1)
		l.unbilled.Add(since)
	}
	for seen := l.longest.Load(); since > seen && !l.longest.CompareAndSwap(seen, since); seen = l.longest.Load() {
	}
	return r, nil
}

func (l *lag) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	_ = json.NewEncoder(w).Encode(l.report())
}

// report begins anew.
func (l *lag) report() LagReport {
	r := LagReport{Longest: time.Duration(l.longest.Swap(0)), Over: l.over.Swap(0), Unbilled: time.Duration(l.unbilled.Swap(0))}
	var counts [lateSteps]int64
	for i := range counts {
		counts[i] = l.counts[i].Swap(0)
		r.Readings += counts[i]
	}
	var sum int64
	for i, n := range counts {
		before := sum
		sum += n
		end := time.Duration(i+1) * lateStep
		if before*2 < r.Readings && sum*2 >= r.Readings {
			r.P50 = end
		}
		if before*100 < r.Readings*99 && sum*100 >= r.Readings*99 {
			r.P99 = end
		}
	}
	return r
}
