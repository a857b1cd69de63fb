package clients

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/shared"
)

// chat asks a model for Hello.
func chat(model string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{Model: model, Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Say Hello")}}
}

// speaks has a client ask for an answer, a stream, a tool and a vector.
func speaks(t *testing.T, client openai.Client) {
	t.Helper()
	answer, err := client.Chat.Completions.New(t.Context(), chat("test"))
	if err != nil || answer.Choices[0].Message.Content != "Hello" {
		t.Fatal(answer, err)
	}
	var text string
	stream := client.Chat.Completions.NewStreaming(t.Context(), chat("test"))
	for stream.Next() {
		for _, choice := range stream.Current().Choices {
			text += choice.Delta.Content
		}
	}
	if err := stream.Err(); err != nil || text != "Hello" {
		t.Errorf("streamed %q, %v", text, err)
	}
	calls := chat("test")
	calls.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{Name: "weather"})}
	if called, err := client.Chat.Completions.New(t.Context(), calls); err != nil || called.Choices[0].Message.ToolCalls[0].Function.Arguments != `{"city":"Oslo"}` {
		t.Error(called, err)
	}
	embedded, err := client.Embeddings.New(t.Context(), openai.EmbeddingNewParams{Model: "test", Input: openai.EmbeddingNewParamsInputUnion{OfString: openai.String("Hello")}})
	if err != nil || !slices.Equal(embedded.Data[0].Embedding, []float64{0.25, -0.5}) {
		t.Error(embedded, err)
	}
}

// lists are the names of the models that a client is told.
func lists(t *testing.T, client openai.Client) (models []string) {
	t.Helper()
	pages := client.Models.ListAutoPaging(t.Context())
	for pages.Next() {
		models = append(models, pages.Current().ID)
	}
	if err := pages.Err(); err != nil {
		t.Error(err)
	}
	slices.Sort(models)
	return models
}

// fill has as many answers run as there are slots, and returns how a client leaves them.
func fill(t *testing.T, client openai.Client, slots int) (leave func()) {
	t.Helper()
	ctx, leave := context.WithCancel(t.Context())
	for range slots {
		slow := client.Chat.Completions.NewStreaming(ctx, chat("slow"))
		t.Cleanup(func() { _ = slow.Close() })
		if !slow.Next() {
			t.Fatal(slow.Err())
		}
	}
	return leave
}

// TestOpenAIGo runs Go's openai-go, unmodified, against a sidecar.
func TestOpenAIGo(t *testing.T) {
	base, e := newRig(t)
	client := openai.NewClient(option.WithBaseURL(base+"/v1/"), option.WithAPIKey("any"), option.WithMaxRetries(0))
	speaks(t, client)
	if models := lists(t, client); !slices.Equal(models, []string{"slow", "test"}) {
		t.Error(models)
	}
	for model, status := range map[string]int{"none": http.StatusNotFound, "busy": http.StatusTooManyRequests, "broken": http.StatusInternalServerError} {
		_, err := client.Chat.Completions.New(t.Context(), chat(model))
		fails(t, err, status, "model is "+model)
	}
	leave := fill(t, client, slots)
	_, err := client.Chat.Completions.New(t.Context(), chat("test"))
	fails(t, err, http.StatusTooManyRequests, "run, and no more may")
	leave()
	retries := openai.NewClient(option.WithBaseURL(base+"/v1/"), option.WithAPIKey("any"))
	if answer, err := retries.Chat.Completions.New(t.Context(), chat("test")); err != nil || answer.Choices[0].Message.Content != "Hello" {
		t.Error(answer, err)
	}
	if n := e.running.Load(); n > 0 {
		t.Errorf("%d requests run on after their client has left", n)
	}
}

// TestOpenAIGoThroughTheProxy runs Go's openai-go, unmodified, against the local proxy and three sidecars. What it spent is what the providers' own
// records bill, of the answers that it left too.
func TestOpenAIGoThroughTheProxy(t *testing.T) {
	t.Parallel()
	w := newTown(t)
	url, admin, stop := w.serve()
	w.status(admin)
	client := openai.NewClient(option.WithBaseURL(url+"/v1/"), option.WithAPIKey(w.key("all", "")), option.WithMaxRetries(10))
	want := []string{"broken", "busy", "cut", "quiet", "slow", "test"}
	for end := time.Now().Add(time.Minute); !slices.Equal(lists(t, client), want); time.Sleep(100 * time.Millisecond) { // its providers are asked at the start
		if time.Now().After(end) {
			t.Fatal(lists(t, client))
		}
	}
	speaks(t, client)
	leave := fill(t, client, len(w.servers))
	impatient := []option.RequestOption{option.WithMaxRetries(0)}
	_, err := client.Chat.Completions.New(t.Context(), chat("test"), impatient...)
	fails(t, err, http.StatusTooManyRequests, "full")
	leave()
	speaks(t, client)
	for model, status := range map[string]int{"none": http.StatusNotFound, "broken": http.StatusServiceUnavailable} {
		_, err := client.Chat.Completions.New(t.Context(), chat(model), impatient...)
		fails(t, err, status, "")
	}
	cut := client.Chat.Completions.NewStreaming(t.Context(), chat("cut"), impatient...)
	for cut.Next() {
	}
	if err := cut.Err(); err == nil || !strings.Contains(err.Error(), "answer_broken") {
		t.Errorf("an answer that breaks off ends with %v", err)
	}
	w.end(admin, stop, "all")
}

// fails holds an error to be the client's own, of a status.
func fails(t *testing.T, err error, status int, says string) {
	t.Helper()
	var own *openai.Error
	if !errors.As(err, &own) || own.StatusCode != status || !strings.Contains(own.Message, says) {
		t.Errorf("%d, and not %v", status, err)
	}
}
