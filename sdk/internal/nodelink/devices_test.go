package nodelink

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/internal/pgtest"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/database"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// ledger is the list of a provider's nodes, on a clock of its own.
type ledger struct {
	*testing.T
	list  Enlistments
	now   time.Time
	clock func(ahead time.Duration) // of the server
	ahead time.Duration
}

func newLedger(t *testing.T, shared bool) *ledger {
	address, clock := filepath.Join(t.TempDir(), "p.db"), func(time.Duration) {}
	if shared {
		address, clock = pgtest.Clock(t)
	}
	db, err := database.Open(t.Context(), address, "provider", os.DirFS("../leasestore"), "migrations/provider")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &ledger{t, Enlistments{DB: db}, time.Now(), clock, 0}
}

// step hears of north and south for a while, as often as a gateway does at least where that is short.
func (l *ledger) step(span time.Duration, north, south []metering.Device) (v Verdict) {
	l.Helper()
	every := max(10*time.Second, span/20)
	for end := l.now.Add(span); ; {
		l.pass(every)
		var err error
		if v, err = l.list.Enlist(l.Context(), l.now, []string{"north", "south"}, map[string][]metering.Device{"north": north, "south": south}); err != nil {
			l.Fatal(err)
		}
		if !l.now.Before(end) {
			return v
		}
	}
}

// pass has time pass, by the clock that the list goes by.
func (l *ledger) pass(span time.Duration) {
	l.now, l.ahead = l.now.Add(span), l.ahead+span
	l.clock(l.ahead)
}

// only is that of both nodes' GPUs those alone are withheld, by "node device".
func (l *ledger) only(when string, v Verdict, want ...string) {
	l.Helper()
	var got []string
	for _, node := range []string{"north", "south"} {
		for _, device := range v.Withheld[node].Devices {
			got = append(got, node+" "+strings.TrimPrefix(device, "GPU-"))
		}
	}
	if len(v.Refused) != 0 || fmt.Sprint(got) != fmt.Sprint(want) {
		l.Errorf("%s: withheld are %v, want %v; refused %v", when, got, want, v.Refused)
	}
}

func (l *ledger) rows(table string) (n int) {
	l.Helper()
	if err := l.list.DB.View().Get(&n, `SELECT count(*) FROM `+table); err != nil {
		l.Fatal(err)
	}
	return n
}

func gpus(names ...string) (all []metering.Device) {
	for _, n := range names {
		all = append(all, metering.Device{UUID: "GPU-" + n, Name: "H100", MemoryBytes: 80 << 30})
	}
	return all
}

// TestLostGPUStaysItsNodes: a GPU of a well node is lost for longer than an hour, and one that lies lists it all along: it does not get it, and
// the well node has it again when it is back. One that starts to list it only then gets that GPU, as a host that it was moved to, and no other
// of the well node's goes into no lease for that.
func TestLostGPUStaysItsNodes(t *testing.T) {
	l := newLedger(t, false)
	well := gpus("n0", "n1", "n2")
	l.only("all is well", l.step(0, well, gpus("s0")))
	l.only("south lies", l.step(0, well, gpus("s0", "n2")), "south n2")
	l.only("n2 is lost", l.step(2*DeviceKept, well[:2], gpus("s0", "n2")), "south n2")
	l.only("n2 is back", l.step(DeviceKept, well, gpus("s0", "n2")), "south n2")
	l.only("n2 is lost again, and south pauses", l.step(2*DeviceKept, well[:2], gpus("s0")))
	l.only("south goes on", l.step(0, well[:2], gpus("s0", "n2")), "south n2")
	l.only("n2 is back again", l.step(0, well, gpus("s0", "n2")), "south n2")

	l.only("n1 is lost", l.step(2*DeviceKept, gpus("n0", "n2"), gpus("s0", "n1")))
	l.only("n1 is back", l.step(2*DeviceKept, well, gpus("s0", "n1")), "north n1")

	slice := metering.Device{UUID: "MIG-a", Parent: "GPU-n0", Name: "H100", MemoryBytes: 80 << 30}
	l.only("a slice of it", l.step(0, well, append(gpus("s0", "n1"), slice)), "north n1", "south MIG-a")
	if v := l.step(0, well, gpus("n0")); len(v.Refused) != 1 || !strings.Contains(v.Refused["south"], "node north's") {
		t.Errorf("a node that has nothing else is refused: %v", v)
	}
}

// TestGPUThatIsMoved: a GPU that was moved counts as its new host's an hour after the old one has stopped to list it, also where that is away
// first; and a day after it, or when no gateway names the other, where both listed it.
func TestGPUThatIsMoved(t *testing.T) {
	l := newLedger(t, false)
	two := gpus("n0", "n1")
	l.only("all is well", l.step(0, two, gpus("s0")))
	l.only("north's host is down", l.step(2*DeviceKept, nil, gpus("s0", "n1")), "south n1")
	l.only("it is up without n1", l.step(DeviceKept/2, two[:1], gpus("s0", "n1")), "south n1")
	l.only("an hour later", l.step(DeviceKept, two[:1], gpus("s0", "n1")))

	l.only("both list n0", l.step(0, two[:1], gpus("s0", "n0")), "south n0")
	l.only("north stops", l.step(RivalKept-time.Hour, gpus("n2"), gpus("s0", "n0")), "south n0")
	l.only("a day later", l.step(2*time.Hour, gpus("n2"), gpus("s0", "n0")))
	l.only("both list n2", l.step(0, gpus("n2"), gpus("s0", "n2")), "south n2")
	l.pass(2 * EnlistedFor)
	v, err := l.list.Enlist(t.Context(), l.now, []string{"south"}, map[string][]metering.Device{"south": gpus("s0", "n2")})
	if err != nil {
		t.Fatal(err)
	}
	l.only("no gateway names north", v)
}

// TestListsFillNoTable: a node that lists a thousand other GPUs each time has a bounded number of rows, at which it is refused, for an hour, in
// one text; whatever it lists besides, no other node notices.
func TestListsFillNoTable(t *testing.T) {
	for name, shared := range map[string]bool{"file": false, "PostgreSQL": true} {
		t.Run(name, func(t *testing.T) {
			l, count, texts := newLedger(t, shared), 0, map[string]bool{}
			well := gpus("n0", "n1")
			lie := func() (names []string) {
				for range 1000 {
					count++
					names = append(names, fmt.Sprint("s", count))
				}
				return names
			}
			for i := range 12 {
				list := gpus(lie()...)
				if i%3 == 2 {
					list[0].Name = "another" // it is refused for this, and begins anew
				}
				v := l.step(0, well, list)
				if len(v.Withheld) != 0 || v.Refused["north"] != "" {
					t.Fatalf("%+v", v)
				}
				if i%3 != 2 {
					texts[v.Refused["south"]] = true
				}
			}
			if n := l.rows("enlisted_devices"); n > mostDevices+2 || n < mostDevices/2 {
				t.Errorf("%d rows", n)
			}
			if len(texts) != 2 || !texts[""] { // enlisted, and refused
				t.Errorf("it is refused in %d ways", len(texts)-1)
			}
			if v := l.step(DeviceKept+time.Minute, well, gpus("s0")); len(v.Refused) != 0 {
				t.Errorf("it lists what it has: %v", v)
			}
			if n := l.rows("enlisted_devices"); n != 3 {
				t.Errorf("%d rows an hour later", n)
			}
		})
	}
}

// TestListWritesWhatChanged: a list that says what the one before did writes no row of a device.
func TestListWritesWhatChanged(t *testing.T) {
	l := newLedger(t, false)
	seen := func() (sum int64) {
		if err := l.list.DB.View().Get(&sum, `SELECT sum(seen) FROM enlisted_devices`); err != nil {
			t.Fatal(err)
		}
		return sum
	}
	l.step(0, gpus("n0", "n1"), gpus("s0"))
	first := seen()
	l.step(0, gpus("n0", "n1"), gpus("s0"))
	l.step(0, nil, gpus("s0"))
	if seen() != first {
		t.Error("devices are written again that are listed as before")
	}
	l.step(refreshed+20*time.Second, gpus("n0", "n1"), gpus("s0"))
	if seen() == first {
		t.Error("devices that are listed for long are never written again: they will be another's")
	}
}
