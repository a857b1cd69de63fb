package upstream_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"

	"github.com/gpupay/gpupay/sdk/internal/upstream"
)

// Example puts a Proxy before an inference server, and says of each request how it ended.
func Example() {
	vllm := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		_, _ = io.WriteString(w, `data: {"choices":[{"delta":{"content":"Hello"},"finish_reason":"stop"}]}`+"\n\ndata: [DONE]\n\n")
	}))
	defer vllm.Close()

	proxy, err := upstream.New(upstream.Config{
		URL:        vllm.URL,
		APIs:       []upstream.API{upstream.OpenAI},
		Credential: http.Header{"Authorization": {"Bearer the-operator's"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer proxy.Close()

	ends := make(chan upstream.Result, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		call, rejected := proxy.Accept(w, r, "lease")
		if call == nil {
			ends <- rejected
			return
		}
		// Here the request waits for its slot; Release gives it up.
		call.Forward(func(end upstream.Result) { ends <- end })
	}))
	defer server.Close()

	for _, path := range []string{"/v1/chat/completions", "/v1/load_lora_adapter"} {
		res, err := http.Post(server.URL+path, "application/json", strings.NewReader(`{"messages":[]}`))
		if err != nil {
			fmt.Println(err)
			return
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		fmt.Println(path, res.StatusCode, <-ends)
	}
	// Output:
	// /v1/chat/completions 200 completed
	// /v1/load_lora_adapter 404 rejected: no such route is served
}
