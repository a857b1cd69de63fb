package received

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gpupay/gpupay/bench"
)

var channelCounts = []int{1, 16, 64, 256, 1024}

// inFlight are the loads: a payer that waits for each receipt, and one that
// streams.
var inFlight = []int{1, 8}

// names of the contenders, as the tables have them.
const (
	payee        = "gpupay"
	payeeEach    = "gpupay, every voucher verified"
	payeeThree   = "gpupay, three gateways"
	unsynced     = "JSON key-value, not synced"
	synced       = "JSON key-value, synced"
	syncedMerged = "JSON key-value, synced, merged writes"
	locked       = "one lock, RPC of 1 ms"
	inMemory     = "memory only"
)

// Section measures payments received over one kind of store.
type Section struct {
	name, title string
	// address returns that of a new, empty database.
	address func(scratch string) (string, error)
	three   bool // also three gateways on one database, in processes of their own
	profile bool // also where the time goes, and how else a voucher could be checked
	about   []string
}

// SQLite measures the store that a single gateway has.
func SQLite() Section {
	return Section{name: "received", title: "Payments received, SQLite", profile: true, about: []string{aboutLoad, aboutBaselines},
		address: func(dir string) (string, error) { return filepath.Join(dir, "payee.db"), nil }}
}

// Name is the section's name.
func (s Section) Name() string { return s.name }

// point is what was measured at one number of channels.
type point struct {
	channels int
	series   []bench.Series
}

func (p point) find(name string) (bench.Series, bool) {
	for _, s := range p.series {
		if s.Name == name {
			return s, true
		}
	}
	return bench.Series{}, false
}

// Measure runs all contenders at every number of channels, with one voucher in
// flight and with eight.
func (s Section) Measure(ctx context.Context, set bench.Settings) (bench.Report, error) {
	r := bench.Report{Title: s.title, About: s.about}
	var most bench.Series // of ours, with most channels and one in flight
	for _, flight := range inFlight {
		var points []point
		for _, channels := range channelCounts {
			if channels > set.Most {
				continue
			}
			p, err := s.point(ctx, set, channels, flight)
			if err != nil {
				return r, fmt.Errorf("%d channels, %d in flight: %w", channels, flight, err)
			}
			points = append(points, p)
		}
		if flight == 1 {
			most = points[len(points)-1].series[0]
		}
		r.Tables = append(r.Tables, ratioTable(points, flight), costTable(points, flight))
		r.Plots = append(r.Plots, ratesPlot(points, flight))
		r.Aims = append(r.Aims, judge(points, flight)...)
	}
	if !s.profile {
		return r, nil
	}
	for _, flight := range inFlight {
		t, file, err := s.profiled(ctx, set, flight)
		if err != nil {
			return r, fmt.Errorf("profile, %d in flight: %w", flight, err)
		}
		r.Tables, r.Files = append(r.Tables, t), append(r.Files, file)
	}
	ways, err := checks(ctx, set)
	if err != nil {
		return r, fmt.Errorf("ways to check a voucher: %w", err)
	}
	r.Tables = append(r.Tables, checksTable(ways))
	r.Notes = append(r.Notes, nearTheLimit, whyRecover(ways, most.Busy/most.Rate().Median))
	return r, nil
}

func (s Section) point(ctx context.Context, set bench.Settings, channels, flight int) (p point, err error) {
	set.Log("%s: %d channels, %d in flight", s.name, channels, flight)
	dir, err := os.MkdirTemp(set.Scratch, "received-")
	if err != nil {
		return p, err
	}
	defer os.RemoveAll(dir)
	b, err := newBook(channels)
	if err != nil {
		return p, err
	}
	loads, err := s.loads(ctx, b, dir, flight)
	var contenders []bench.Contender
	for _, l := range loads {
		contenders = append(contenders, l.contender(l.name, l.name == locked || l.name == synced))
	}
	if err == nil {
		p.channels = channels
		p.series, err = bench.Interleave(ctx, set, contenders)
	}
	for _, l := range loads {
		err = errors.Join(err, l.check(ctx))
	}
	return p, err
}

type named struct {
	name string
	runner
}

// loads opens every contender on an empty store.
func (s Section) loads(ctx context.Context, b *book, dir string, flight int) (loads []named, err error) {
	add := func(name string, open func(dir string) (runner, error)) {
		if err != nil {
			return
		}
		own := filepath.Join(dir, fmt.Sprint(len(loads)))
		if err = os.Mkdir(own, 0o700); err != nil {
			return
		}
		var r runner
		if r, err = open(own); err != nil {
			err = fmt.Errorf("%s: %w", name, err)
			return
		}
		loads = append(loads, named{name, r})
	}
	here := func(stream bool, open func(dir string) (gateway, error)) func(string) (runner, error) {
		return func(dir string) (runner, error) {
			to, err := open(dir)
			return &load{book: b, flight: flight, stream: stream, to: to}, err
		}
	}
	own := func(dir string) (gateway, error) {
		address, err := s.address(dir)
		if err != nil {
			return nil, err
		}
		return openOnly(ctx, b, address)
	}
	keyValue := func(sync, lock bool, locks int) func(string) (gateway, error) {
		return func(dir string) (gateway, error) { return openKeyValue(b, dir, sync, lock, locks) }
	}
	add(payee, here(true, own))
	if flight > 1 {
		add(payeeEach, here(false, own))
	}
	if s.three {
		add(payeeThree, func(dir string) (runner, error) {
			address, err := s.address(dir)
			if err != nil {
				return nil, err
			}
			return openFleet(ctx, b, address, 3, flight)
		})
	}
	add(unsynced, here(false, keyValue(false, false, 1)))
	add(synced, here(false, keyValue(true, false, 1)))
	add(syncedMerged, here(false, keyValue(true, false, 4096)))
	add(locked, here(false, keyValue(false, true, 1)))
	add(inMemory, here(false, func(string) (gateway, error) { return openMemory(b), nil }))
	return loads, err
}
