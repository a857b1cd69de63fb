package nodelink

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"golang.org/x/time/rate"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/chain"
	"github.com/gpupay/gpupay/sdk/internal/inventory"
	"github.com/gpupay/gpupay/sdk/wire"
)

// Pool is the nodes of a gateway, what they said when they were asked last, and which of them may begin a lease.
type Pool struct {
	Classes inventory.Classes // each of which has nodes of one kind
	clients []*Client
	log     *slog.Logger

	enlisting sync.Mutex // one at a time

	mu     sync.Mutex
	now    func() time.Time
	status map[string]Status            // of the nodes that answered when they were asked last
	known  map[string][]metering.Device // of all that were ever enlisted: the offer does not change with the network
	failed map[string]string            // what was logged of the others
	rests  map[string]*backoff          // of those that began no lease when they were asked
	busy   map[string]bool              // see Go
	said   map[string]*rate.Limiter     // see says
	work   sync.WaitGroup

	enlisted   map[string][]wire.OfferDevices // what each node had when its enlistment was decided last, at enlistedAt
	enlistedAt time.Time
	refused    map[string]string // and why it was refused
	withheld   map[string]string // or why some of its devices are
	early      *rate.Limiter     // of lists that differ, see enlistBurst
}

// The least and the most of a node's rest.
const (
	leastRest = 10 * time.Second
	MostRest  = 5 * time.Minute
)

// NewPool is the pool of some nodes, each of another name. None has been asked yet.
func NewPool(links []*Client, log *slog.Logger) (*Pool, error) {
	p := &Pool{log: log, now: time.Now, status: make(map[string]Status), known: make(map[string][]metering.Device),
		failed: make(map[string]string), rests: make(map[string]*backoff), busy: make(map[string]bool), said: make(map[string]*rate.Limiter),
		enlisted: make(map[string][]wire.OfferDevices), refused: make(map[string]string), withheld: make(map[string]string),
		early: rate.NewLimiter(rate.Every(enlistEvery), enlistBurst)}
	for _, c := range links {
		if p.Client(c.Name) != nil {
			return nil, fmt.Errorf("node %s: there are two of this name", c.Name)
		}
		p.clients = append(p.clients, c)
	}
	return p, nil
}

// Timeout bounds a question to a node that answers from memory and its disk.
const Timeout = 5 * time.Second

// backoff is how long a node gets no new lease that could not begin one: it answers, and so has most free, and every lease would fail
// at it.
type backoff struct {
	until time.Time
	pace  chain.Backoff
}

// Client is the client of the node of a name; nil where there is none.
func (p *Pool) Client(name string) *Client {
	i := slices.IndexFunc(p.clients, func(c *Client) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return p.clients[i]
}

// Poll asks all nodes at once how they are, and enlists in a database those that are of one kind, or of the kind of their class.
func (p *Pool) Poll(ctx context.Context, db *store.DB) error {
	var wait sync.WaitGroup
	for _, c := range p.clients {
		wait.Go(func() {
			var s Status
			err := c.Call(ctx, Timeout, "GET", "/status", nil, &s)
			if ctx.Err() == nil {
				p.update(c.Name, s, err)
			}
		})
	}
	wait.Wait()
	return p.enlist(ctx, db)
}

// update keeps what a node said, or that it did not, and logs it once.
func (p *Pool) update(name string, s Status, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		if was := p.status[name]; s.Problem != "" && was.Problem != s.Problem && p.says("status", name) {
			p.log.Warn("node begins no lease, and those that run there go on", "node", name, "problem", s.Problem)
		}
		if p.failed[name] != "" && p.says("status", name) {
			p.log.Info("node is back", "node", name)
		}
		delete(p.failed, name)
		p.status[name] = s
		return
	}
	delete(p.status, name)
	if p.failed[name] == "" && p.says("status", name) { // said once
		p.log.Warn("node is out of reach: its leases go on within their credit", "node", name, "error", err)
	}
	p.failed[name] = err.Error()
}

// Devices is what all enlisted nodes rent out, in the order of their links.
func (p *Pool) Devices() []metering.Device {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []metering.Device
	for _, c := range p.clients {
		all = append(all, p.known[c.Name]...)
	}
	return all
}

// Go has a node's work done beside all else, unless the last of its kind is still under way: a node that does not answer
// holds up no other.
func (p *Pool) Go(ctx context.Context, kind, name string, work func(context.Context) error) {
	key := kind + " " + name
	p.mu.Lock()
	busy := p.busy[key]
	p.busy[key] = true
	p.mu.Unlock()
	if busy {
		return
	}
	p.work.Go(func() {
		err := work(ctx)
		p.mu.Lock()
		delete(p.busy, key)
		said := err != nil && ctx.Err() == nil && p.says(kind, name)
		p.mu.Unlock()
		if said {
			p.log.Warn("what a node has to do with the database", "node", name, "error", Brief(err))
		}
	})
}

// What one node does of one kind is logged so many times at once, and once in saysEvery from then on: the errors are its words.
const (
	saysBurst = 10
	saysEvery = time.Minute
)

// says reports whether what a node does is logged now: one that is broken into makes an error of a kind as often as it is asked. p.mu is held.
func (p *Pool) says(kind, name string) bool {
	key := kind + " " + name
	if p.said[key] == nil {
		p.said[key] = rate.NewLimiter(rate.Every(saysEvery), saysBurst)
	}
	return p.said[key].AllowN(p.now(), 1)
}

// maxBrief bounds what is logged of an error at a time, in bytes.
const maxBrief = 4 * MaxText

// Brief is the beginning of an error as it is logged, which may be hundreds that are joined: of each lease that a node lists.
func Brief(err error) string {
	text := err.Error()
	if more := len(text) - maxBrief; more > 0 {
		return fmt.Sprintf("%s… (and %d bytes more)", strings.ToValidUTF8(text[:maxBrief], ""), more)
	}
	return text
}

// Wait waits for what Go began.
func (p *Pool) Wait() { p.work.Wait() }

// Leases are those that the nodes listed when they were asked last, by the node's name.
func (p *Pool) Leases() map[string][]common.Hash {
	p.mu.Lock()
	defer p.mu.Unlock()
	there := make(map[string][]common.Hash)
	for name, s := range p.status {
		for _, l := range s.Leases {
			there[name] = append(there[name], l.LeaseID)
		}
	}
	return there
}

// SetClock has another clock say when a rest is over and a list of devices is due.
func (p *Pool) SetClock(now func() time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = now
}

// Answers reports whether a node did when it was asked last.
func (p *Pool) Answers(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.status[name]
	return ok
}

// Unreachable are the nodes that did not answer when they were asked last, by name.
func (p *Pool) Unreachable() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Sorted(maps.Keys(p.failed))
}

// resting reports whether a node gets no new lease for now. p.mu is held.
func (p *Pool) resting(name string) bool {
	rest := p.rests[name]
	return rest != nil && p.now().Before(rest.until)
}

// Rest has a node rest that could not begin a lease, longer each time.
func (p *Pool) Rest(name string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	rest := p.rests[name]
	if rest == nil {
		rest = &backoff{pace: chain.Backoff{Least: leastRest, Most: MostRest}}
		p.rests[name] = rest
	}
	wait := rest.pace.Next()
	rest.until = p.now().Add(wait)
	return wait
}

// Resting are the nodes that get no new lease for now, since they could not begin one, by name.
func (p *Pool) Resting() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for _, c := range p.clients {
		if p.resting(c.Name) {
			names = append(names, c.Name)
		}
	}
	slices.Sort(names)
	return names
}

// EndRest ends a node's rest: it has begun a lease.
func (p *Pool) EndRest(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.rests, name)
}

// Any is a device of whatever class.
func Any(metering.Device) bool { return true }

// Free is the most devices that one node has free: a lease is on one host.
func (p *Pool) Free() int { return p.FreeBeside(nil, Any) }

// has reports whether a node's devices are of a class: those of one node are of one. p.mu is held.
func (p *Pool) has(name string, is func(metering.Device) bool) bool {
	known := p.known[name]
	return !slices.ContainsFunc(known, func(d metering.Device) bool { return !is(d) })
}

// FreeBeside is Free, of devices of a class, when leases of so many of them have begun, each on the node that has most free.
func (p *Pool) FreeBeside(leases []int, is func(metering.Device) bool) int {
	p.mu.Lock()
	var free []int
	for name, s := range p.status {
		if p.accepts(name) && p.has(name, is) {
			free = append(free, s.Free)
		}
	}
	p.mu.Unlock()
	if len(free) == 0 {
		return 0
	}
	for _, gpus := range leases {
		i := slices.Index(free, slices.Max(free))
		if free[i] >= gpus {
			free[i] -= gpus
		}
	}
	return max(slices.Max(free), 0)
}

// WithCapacity returns the nodes with enough devices of a class free, those with most first, so that leases spread over the hosts.
func (p *Pool) WithCapacity(gpus int, is func(metering.Device) bool) []*Client {
	p.mu.Lock()
	defer p.mu.Unlock()
	var fit []*Client
	for _, c := range p.clients {
		if p.accepts(c.Name) && p.has(c.Name, is) && p.status[c.Name].Free >= gpus {
			fit = append(fit, c)
		}
	}
	slices.SortStableFunc(fit, func(a, b *Client) int { return cmp.Compare(p.status[b.Name].Free, p.status[a.Name].Free) })
	return fit
}

// Reserve counts what was just given away, until the node says so itself.
func (p *Pool) Reserve(name string, gpus int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s, ok := p.status[name]; ok {
		s.Free = max(0, s.Free-gpus)
		p.status[name] = s
	}
}

// Names are those of all nodes, as an error says them.
func (p *Pool) Names() string {
	names := make([]string, len(p.clients))
	for i, c := range p.clients {
		names[i] = c.Name
	}
	return strings.Join(names, ", ")
}

// enlistEvery is how often a gateway says which nodes it has.
const enlistEvery = 10 * time.Second

// enlistBurst is how many lists that differ from those before are looked at at once, before others wait for enlistEvery: each look is a
// transaction that all who write to the database wait for.
const enlistBurst = 10

// refusalTimeout is how long the others wait for a node that does not hear why it is refused.
const refusalTimeout = time.Second

// CheckDevices refuses devices that an enlisted node did not list, is not to have twice, are not of the class, or that are more or fewer
// than were asked for.
func (p *Pool) CheckDevices(name string, devices []string, gpus int, is func(metering.Device) bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(devices) != gpus {
		return fmt.Errorf("it gives %d devices for %d", len(devices), gpus)
	}
	for i, uuid := range devices {
		if !slices.ContainsFunc(p.known[name], func(d metering.Device) bool { return d.UUID == uuid && is(d) }) || slices.Contains(devices[:i], uuid) {
			return fmt.Errorf("it gives device %.*q, which is not one of those that it lists and were asked for, or gives it twice", MaxDeviceText, uuid)
		}
	}
	return nil
}

// CheckSlices refuses a record of MIG slices that are said to be cut from another node's GPU: who checks whether a GPU is
// billed twice would blame that node. The slices themselves are the lease's, see owns.
func (p *Pool) CheckSlices(name string, billed []metering.DeviceEvidence) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for other, devices := range p.known {
		if other == name {
			continue
		}
		theirs := DeviceNames(devices)
		for _, d := range billed {
			if d.Device.Parent != "" && slices.Contains(theirs, d.Device.Parent) {
				return fmt.Errorf("it bills slices of GPU %s, which is node %s's", d.Device.Parent, other)
			}
		}
	}
	return nil
}

// enlist has the list say which nodes begin leases, when that is due or a node has other devices than it had.
func (p *Pool) enlist(ctx context.Context, db *store.DB) error {
	p.mu.Lock()
	due, differs := p.now().Sub(p.enlistedAt).Abs() >= enlistEvery, false
	for name, s := range p.status {
		before, known := p.enlisted[name]
		differs = differs || s.Problem == "" && (!known || !slices.Equal(wire.DevicesOf(s.Devices), before))
	}
	p.mu.Unlock()
	if !due && (!differs || !p.early.Allow()) {
		return nil
	}
	return p.Enlist(ctx, db)
}

// Enlist has the list of all gateways say which nodes begin leases, and tells those that do not why. Of two calls at once the second waits:
// what is held against a node is what the list said last.
func (p *Pool) Enlist(ctx context.Context, db *store.DB) error {
	p.enlisting.Lock()
	defer p.enlisting.Unlock()
	p.mu.Lock()
	now, heard := p.now(), make(map[string][]metering.Device)
	for name, s := range p.status {
		if s.Problem == "" { // or it has what it had
			heard[name] = s.Devices
		}
	}
	p.mu.Unlock()
	links := make([]string, len(p.clients))
	for i, c := range p.clients {
		links[i] = c.Name
	}
	verdict, err := Enlistments{DB: db, Classes: p.Classes}.Enlist(ctx, now, links, heard)
	if err != nil {
		return fmt.Errorf("enlisting nodes: %w", err)
	}
	p.updateEnlisted(now, heard, verdict)
	p.tell(ctx, verdict)
	return nil
}

// tell tells nodes what is held against them: one of which devices are withheld hands out the others.
func (p *Pool) tell(ctx context.Context, verdict Verdict) {
	words := make(map[string]Refusal)
	for name, w := range verdict.Withheld {
		words[name] = Refusal{Reason: w.Reason, Devices: w.Devices[:min(len(w.Devices), maxWithheld)]}
	}
	for name, why := range verdict.Refused {
		words[name] = Refusal{Reason: why}
	}
	var wait sync.WaitGroup
	for name, word := range words {
		wait.Go(func() {
			var answer struct{}
			if err := p.Client(name).Call(ctx, refusalTimeout, "POST", "/refusal", word, &answer); err != nil {
				p.log.Debug("node does not hear why it is refused", "node", name, "error", err)
			}
		})
	}
	wait.Wait()
}

// updateEnlisted keeps what was decided of the nodes that were heard.
func (p *Pool) updateEnlisted(now time.Time, heard map[string][]metering.Device, verdict Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.enlistedAt = now
	for name, devices := range heard {
		p.enlisted[name] = wire.DevicesOf(devices)
		why, withheld := verdict.Refused[name], verdict.Withheld[name]
		if why == "" {
			if p.refused[name] != "" {
				p.log.Info("node is enlisted", "node", name)
			}
			delete(p.refused, name)
			p.known[name] = withheld.Rest(devices)
		} else {
			if p.refused[name] != why {
				p.log.Error("node is refused: it begins no lease, and those that run there go on", "node", name, "error", why)
			}
			p.refused[name] = why
			delete(p.known, name)
		}
		if withheld.Reason == "" {
			delete(p.withheld, name)
			continue
		}
		if p.withheld[name] != withheld.Reason {
			p.log.Error("some of a node's GPUs go into no lease there, and the others do", "node", name, "error", withheld.Reason)
		}
		p.withheld[name] = withheld.Reason
	}
}

// accepts reports whether a node may begin a lease: it answered, with devices that are enlisted. p.mu is held.
func (p *Pool) accepts(name string) bool {
	s, ok := p.status[name]
	kind, listed := p.enlisted[name]
	return ok && listed && p.refused[name] == "" && slices.Equal(kind, wire.DevicesOf(s.Devices)) && !p.resting(name)
}

// Refused is why nodes begin no lease, or none on some of their devices, by their names.
func (p *Pool) Refused() map[string]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[string]string)
	maps.Copy(all, p.withheld)
	maps.Copy(all, p.refused)
	return all
}
