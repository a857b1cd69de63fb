package service_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/gpupay/gpupay/sdk/service"
)

// A server answers until its context ends. What it serves is stopped then, before its work in the background is.
func Example() {
	public, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	ctx, interrupt := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- service.Serve(ctx, service.Service{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "served") }),
			Run: func(ctx context.Context) error {
				<-ctx.Done()
				fmt.Println("settled")
				return nil
			},
			Stop: func(context.Context) error {
				fmt.Println("last records written")
				return nil
			},
		}, public, nil)
	}()

	answer, err := http.Get("http://" + public.Addr().String())
	if err != nil {
		panic(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	fmt.Println(string(body), err)
	interrupt()
	fmt.Println(<-ended)
	// Output:
	// served <nil>
	// last records written
	// settled
	// <nil>
}
