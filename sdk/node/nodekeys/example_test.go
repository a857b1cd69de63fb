package nodekeys_test

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"

	"github.com/gpupay/gpupay/sdk/node/nodekeys"
)

// A provider's authority issues one identity to its gateways and one to each node. Who reaches a node by the name of another is not
// talked to.
func Example() {
	dir, err := os.MkdirTemp("", "gpupay-example-")
	must(err)
	defer os.RemoveAll(dir)
	ca, err := nodekeys.OpenCA(dir)
	must(err)
	gateway, err := ca.Gateway()
	must(err)
	north, err := ca.Node("north")
	must(err)

	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Println("a gateway of ours asks:", north.FromGateway(r))
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = north.ServeTLS()
	server.StartTLS()
	defer server.Close()
	for _, name := range []string{"north", "south"} {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: gateway.DialTLS(name)}}
		_, err := client.Get(server.URL)
		fmt.Println(name, "answers:", err == nil)
		client.CloseIdleConnections()
	}
	// Output:
	// a gateway of ours asks: true
	// north answers: true
	// south answers: false
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
