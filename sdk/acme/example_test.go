package acme_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"

	"github.com/gpupay/gpupay/sdk/acme"
	"github.com/gpupay/gpupay/sdk/service"
)

// A server has a certificate of its own, or says in one line what stands in the way: here the authority is away.
func Example() {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // :443 at home
	if err != nil {
		panic(err)
	}
	defer listener.Close()
	dir, err := os.MkdirTemp("", "certificates")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	cert, err := acme.Obtain(context.Background(), listener, acme.Config{Domain: "gpu.example.org", Dir: dir, Authority: "https://127.0.0.1:1/directory"})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer cert.Close()
	err = service.Serve(context.Background(), service.Service{Handler: http.NotFoundHandler(), TLS: cert.TLS()}, listener, nil)
	fmt.Println(err)
	// Output:
	// no certificate for gpu.example.org: the authority: Get "https://127.0.0.1:1/directory": dial tcp 127.0.0.1:1: connect: connection refused
}
