package fleet

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/chaintest"
)

// identities makes certificates with the node's program, once for all tests.
func identities(t *testing.T) string {
	t.Helper()
	identitiesOnce.Do(func() {
		identitiesDir = filepath.Join(filepath.Dir(program), "ca")
		if out, err := exec.Command(program, "node", "--issue", "north,south,east,west", "--ca", identitiesDir).CombinedOutput(); err != nil {
			t.Fatalf("--issue: %v\n%s", err, out)
		}
	})
	return identitiesDir
}

var (
	identitiesOnce sync.Once
	identitiesDir  string
)

// Host is a node process with its spool, behind a network that can be cut.
type Host struct {
	*Process
	Name  string
	Spool string // path
	Wire  *Cable
}

// NewHost starts a node with simulated GPUs. It signs with a key of its own.
func NewHost(t *testing.T, c *chaintest.Chain, name string, devices int, more ...string) *Host {
	t.Helper()
	dir := identities(t)
	h := &Host{Name: name, Spool: filepath.Join(t.TempDir(), "spool.db")}
	h.Process = Supervise(t, func(address string) *exec.Cmd {
		cmd := exec.Command(program, append([]string{"node", "--listen", address, "--admin", "", "--name", name, "--gpu", fmt.Sprintf("sim:%d", devices),
			"--db", h.Spool, "--payee", crypto.PubkeyToAddress(c.Keys[0].PublicKey).Hex(), "--log-level", "warn",
			"--node-identity", filepath.Join(dir, "nodes", name)}, more...)...)
		return cmd
	})
	h.Ready()
	h.Wire = NewCable(t, "tcp", h.Address)
	return h
}

// Links are the flags of a gateway whose GPUs are metered by the hosts.
func Links(t *testing.T, c *chaintest.Chain, hosts []*Host) []string {
	t.Helper()
	var links []string
	for _, h := range hosts {
		links = append(links, h.Name+"=https://"+h.Wire.Address)
	}
	return []string{"--nodes", strings.Join(links, ","), "--node-identity", filepath.Join(identities(t), "gateway")}
}
