package fleet

import (
	"math/rand/v2"
	"net"
	"sync"
	"testing"
)

// Cable forwards a stream until it is cut, frozen or worn.
type Cable struct {
	Address string
	network string // of what it leads to
	to      string

	mu     sync.Mutex
	moved  *sync.Cond // when anything below has changed
	off    bool
	frozen bool
	wear   float64 // how likely a piece of data breaks its connection
	rng    *rand.Rand
	look   func(statement string) bool
	conns  map[net.Conn]struct{}
}

// NewCable leads to an address of a network, such as unix.
func NewCable(t testing.TB, network, to string) *Cable {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Cable{Address: listener.Addr().String(), network: network, to: to, conns: make(map[net.Conn]struct{})}
	c.moved = sync.NewCond(&c.mu)
	t.Cleanup(func() { listener.Close(); c.Cut(true) })
	go func() {
		for {
			in, err := listener.Accept()
			if err != nil {
				return
			}
			go c.join(in)
		}
	}()
	return c
}

func (c *Cable) join(in net.Conn) {
	defer in.Close()
	c.mu.Lock()
	network, to := c.network, c.to
	c.mu.Unlock()
	out, err := net.Dial(network, to)
	if err != nil {
		return
	}
	defer out.Close()
	if !c.hold(in, out) {
		return
	}
	defer c.drop(in, out)
	done := make(chan struct{})
	go func() { defer close(done); c.pump(out, in, c.heeds) }()
	c.pump(in, out, func([]byte) bool { return true })
	<-done
}

// pump forwards one direction until either end is closed, or a piece is not to pass,
// and closes both.
func (c *Cable) pump(to, from net.Conn, heeds func([]byte) bool) {
	defer to.Close()
	defer from.Close()
	piece := make([]byte, 32<<10)
	for {
		n, err := from.Read(piece)
		if n > 0 && (!c.passes() || !heeds(piece[:n]) || write(to, piece[:n]) != nil) || err != nil {
			return
		}
	}
}

func write(to net.Conn, piece []byte) error {
	_, err := to.Write(piece)
	return err
}

// passes waits while the cable is frozen, and is false for a piece that does not
// arrive.
func (c *Cable) passes() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.frozen && !c.off {
		c.moved.Wait()
	}
	return !c.off && (c.wear == 0 || c.rng.Float64() >= c.wear)
}

func (c *Cable) hold(conns ...net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off {
		return false
	}
	for _, conn := range conns {
		c.conns[conn] = struct{}{}
	}
	return true
}

func (c *Cable) drop(conns ...net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range conns {
		delete(c.conns, conn)
	}
}

func (c *Cable) change(how func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	how()
	c.moved.Broadcast()
}

// Cut ends what goes through it, and refuses what comes, until it is mended.
func (c *Cable) Cut(off bool) {
	c.change(func() {
		c.off = off
		for conn := range c.conns {
			if off {
				conn.Close()
			}
		}
	})
}

// Freeze keeps all data back, and every connection open.
func (c *Cable) Freeze(frozen bool) { c.change(func() { c.frozen = frozen }) }

// Wear breaks a connection at a piece of data now and then: with a likelihood, and
// from a seed. 0 mends it.
func (c *Cable) Wear(likelihood float64, seed uint64) {
	c.change(func() { c.wear, c.rng = likelihood, rand.New(rand.NewPCG(seed, 0)) })
}

// Lead has new connections go to another address, and ends those there are.
func (c *Cable) Lead(network, to string) {
	c.change(func() {
		c.network, c.to = network, to
		for conn := range c.conns {
			conn.Close()
		}
	})
}
