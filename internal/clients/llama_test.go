package clients

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

// pace is how long llama.cpp is made to take for a token, in milliseconds: its model is a small one.
const pace = "4"

// llama runs llama.cpp until the test ends, with a model that says the same to the same words each time.
func llama(t *testing.T) (url string) {
	t.Helper()
	cmd := exec.Command("node", "llama/llama.mjs", filepath.Join(t.TempDir(), "random.gguf"), pace)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	must(t, err)
	return strings.TrimSpace(line)
}

// TestLlama: llama.cpp, a real inference server, is rented out by three sidecars and asked through the proxy by Go's openai-go. Every answer is the one
// that it gives when it is asked itself, also one that is cut off between two tokens, and then is gone on with by another one: each is paid once.
// It takes what npm ci puts into internal/clients/llama, and GPUPAY_LLAMA=1.
func TestLlama(t *testing.T) {
	if os.Getenv("GPUPAY_LLAMA") != "1" {
		t.Skip("./test.sh long runs it")
	}
	var upstreams [3]string
	for i := range upstreams {
		upstreams[i] = llama(t)
	}
	w := new(town)
	w.open(t, upstreams, true, "random")
	url, admin, stop := w.serve()
	w.status(admin)
	paid := openai.NewClient(option.WithBaseURL(url+"/v1/"), option.WithAPIKey(w.key("all", "")), option.WithMaxRetries(10))
	itself := openai.NewClient(option.WithBaseURL(upstreams[0]+"/v1/"), option.WithAPIKey("none"))
	for end := time.Now().Add(time.Minute); len(lists(t, paid)) == 0; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no provider is known")
		}
	}
	question := chat("random")
	question.MaxTokens = openai.Int(400)
	want, err := itself.Chat.Completions.New(t.Context(), question)
	must(t, err)
	text := want.Choices[0].Message.Content
	if len(text) != 400 {
		t.Fatalf("the model says %q", text)
	}
	got, err := paid.Chat.Completions.New(t.Context(), question)
	must(t, err)
	if got.Choices[0].Message.Content != text || got.Usage.TotalTokens != want.Usage.TotalTokens {
		t.Errorf("%+v, and not %+v", got, want)
	}

	var streamed strings.Builder
	cut := false
	stream := paid.Chat.Completions.NewStreaming(t.Context(), question)
	for stream.Next() {
		for _, choice := range stream.Current().Choices {
			streamed.WriteString(choice.Delta.Content)
		}
		if streamed.Len() >= 100 && !cut {
			cut = true
			for _, site := range w.sites {
				site.CloseClientConnections()
			}
		}
	}
	if err := stream.Err(); err != nil || streamed.String() != text {
		t.Errorf("%v\n%s\nis not\n%s", err, &streamed, text)
	}

	long := chat("random")
	long.Messages = append(long.Messages, openai.UserMessage(strings.Repeat("too long ", 400)))
	_, err = paid.Chat.Completions.New(t.Context(), long)
	fails(t, err, http.StatusBadRequest, "are all")

	ctx, leave := context.WithCancel(t.Context())
	left := paid.Chat.Completions.NewStreaming(ctx, question)
	if !left.Next() {
		t.Fatal(left.Err())
	}
	leave()
	_ = left.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		running := 0
		for _, upstream := range upstreams {
			var health struct{ Running int }
			res, err := http.Get(upstream + "/health")
			must(t, err)
			must(t, json.NewDecoder(res.Body).Decode(&health))
			_ = res.Body.Close()
			running += health.Running
		}
		if running == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d answers are made for nobody", running)
		}
	}
	w.end(admin, stop, "all")
}
