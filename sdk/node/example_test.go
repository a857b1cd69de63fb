package node_test

import (
	"context"
	"fmt"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/node"
	"github.com/gpupay/gpupay/sdk/node/nodekeys"
)

// An agent meters two GPUs under the name that its provider's authority gave it. Its gateways reach it over TLS; here its operator asks
// how it is.
func ExampleNew() {
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	ca, err := nodekeys.OpenCA(dir) // the provider's; a node has what `gpupay node --issue` made of it
	must(err)
	identity, err := ca.Node("north")
	must(err)
	key, err := nodekeys.OpenMeterKey(filepath.Join(dir, "meter-key.pem"))
	must(err)
	agent, err := node.New(context.Background(), node.Config{
		Name: "north", Identity: identity, MeterKey: key, Database: filepath.Join(dir, "spool.db"), Source: sim.New(2, sim.Options{}),
	})
	must(err)
	defer agent.Close()

	server := httptest.NewUnstartedServer(agent)
	server.TLS = agent.TLS()
	server.StartTLS()
	defer server.Close()
	health := httptest.NewRecorder()
	agent.Health().ServeHTTP(health, httptest.NewRequest("GET", "/healthz", nil))
	fmt.Println(health.Code, health.Body)
	// Output: 200 {"status":"ok","restartWanted":false,"leases":0,"unmeteredLeases":0,"heldLeases":0}
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
