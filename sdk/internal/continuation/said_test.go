package continuation_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/sdk/internal/continuation"
)

const first = `{"id":"a","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"},"finish_reason":null}]}`

// TestSplice: an event of who goes on is one of the answer that has begun, or nothing is left of it.
func TestSplice(t *testing.T) {
	t.Parallel()
	var s continuation.Said
	s.Hear([]byte(first))
	for event, want := range map[string]string{
		`[DONE]`: "data: [DONE]\n\n",
		`{"id":"b","created":2,"model":"n","object":"o","choices":[{"index":0,"delta":{"role":"assistant","content":"lo"},"finish_reason":null}],"usage":{"total_tokens":9}}`: `data: {"id":"a","created":1,"model":"m","object":"o","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":null}]}` + "\n\n",
		`{"id":"b","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}`:                                                      "",
		`{"id":"b","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}`:                                                                                   `data: {"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}` + "\n\n",
		`{"id":"b","choices":[{"delta":{"tool_calls":[{"index":0}]}}]}`:                                                                                                       `data: {"id":"a","choices":[{"delta":{"tool_calls":[{"index":0}]}}]}` + "\n\n",
		" [DONE] ": "data: [DONE]\n\n", ``: "", " null": "", `[]`: "", `{}`: "", `{"choices":null}`: "", `{"choices":[null]}`: "", `{"choices":[{"delta":null}]}`: "",
		`{"id":"b","id":"c","choices":[{"delta":{"content":"no","content":"lo"}}]}`: `data: {"id":"a","choices":[{"delta":{"content":"lo"}}]}` + "\n\n",
		`{"id":"b","choices":[{"index":0,"delta":null,"finish_reason":"stop"}]}`:    `data: {"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n",
		`{"id":"b","choices":[],"usage":{"total_tokens":9}}`:                        "",
	} {
		if got, ok := s.Splice([]byte(event)); !ok || string(got) != want {
			t.Errorf("%s\ngot  %s\nwant %s", event, got, want)
		}
	}
	for _, event := range []string{`x`, `[1]`, `{"choices":1}`, `{"choices":[1]}`, `{"choices":[{"delta":1}]}`, `{}{}`} {
		if got, ok := s.Splice([]byte(event)); ok {
			t.Errorf("%s is taken for %s", event, got)
		}
	}
}

// TestTokensAreNeverPassed: what was said is taken off what may be said, in either name of it, and nobody is asked for less than one token.
func TestTokensAreNeverPassed(t *testing.T) {
	t.Parallel()
	var s continuation.Said
	s.Hear([]byte(first))
	s.Hear([]byte(strings.Replace(first, "Hel", strings.Repeat("long", 10), 1))) // ten tokens
	for request, want := range map[string]string{
		`{"max_tokens":12}`: `"max_tokens":1}`, `{"max_tokens":null,"max_completion_tokens":99}`: `"max_tokens":null,"max_completion_tokens":88}`, `{"max_tokens":11}`: "", `{"max_tokens":5}`: "", `{"max_tokens":99,"max_completion_tokens":1}`: "",
		`{"continue_final_message":null,"add_generation_prompt":null,"messages":[]}`: `"messages":[{"role":"assistant","content":"Hel` + strings.Repeat("long", 10) + `"}]}`,
	} {
		all, err := continuation.Members([]byte(request))
		if err != nil || !continuation.Plain(all) {
			t.Fatal(request, err)
		}
		if want != "" {
			want = `{"continue_final_message":true,"add_generation_prompt":false,` + want
		}
		rest, ok := s.Rest(all)
		if got := string(continuation.Object(rest)); ok != (want != "") || ok && got != want {
			t.Errorf("%s: %s, want %s", request, got, want)
		}
	}
}

// TestPlain: what is said beside text, and what cannot be kept, nobody goes on with.
func TestPlain(t *testing.T) {
	t.Parallel()
	for event, plain := range map[string]bool{
		first: true,
		`{"choices":[{"delta":{"content":null,"refusal":null,"tool_calls":[],"reasoning_content":""},"logprobs":null}]}`: true,
		`{"choices":[],"usage":{"total_tokens":1}}`:            true,
		`{"choices":[{"delta":{"refusal":"no"}}]}`:             false,
		`{"choices":[{"delta":{"content":["a"]}}]}`:            false,
		`{"choices":[{"delta":{"content":"\ud83d"}}]}`:         false,
		`{"choices":[{"index":1,"delta":{}}]}`:                 false,
		`{"choices":[{"delta":{},"logprobs":{"content":[]}}]}`: false,
		`{"choices":[{"delta":{},"finish_reason":"stop"}]}`:    false,
		`{"choices":[{"delta":{},"finish_reason":"abort"}]}`:   true,
		`{"choices":[{"delta":{},"finish_reason":"error"}]}`:   true,
		`{"choices":[{"delta":{},"finish_reason":""}]}`:        true,
		`null`: true,
		`{"id":"` + strings.Repeat("a", 600) + `","choices":[{"delta":{}}]}`: false,
		`hello`: false,
	} {
		var s continuation.Said
		if s.Hear([]byte(event)); s.Plain() != plain {
			t.Errorf("%.100s: plain is %t", event, s.Plain())
		}
		if s.Hear([]byte(first)); s.Plain() != plain {
			t.Errorf("%.100s, and text behind it: plain is %t", event, s.Plain())
		}
	}
}

// FuzzSplice: whatever a provider sends, what is passed on is one event of JSON.
func FuzzSplice(f *testing.F) {
	f.Add([]byte(first), []byte(first))
	f.Add([]byte(`{"id":1,"choices":[{"index":0,"delta":{"content":"\u00e4<"}}]}`), []byte(`[DONE]`))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		var s continuation.Said
		s.Hear(one)
		out, ok := s.Splice(two)
		if !ok || len(out) == 0 {
			return
		}
		event, is := strings.CutPrefix(string(out), "data: ")
		if event = strings.TrimSpace(event); !is || !strings.HasSuffix(string(out), "\n\n") || event != "[DONE]" && !json.Valid([]byte(event)) {
			t.Errorf("%q", out)
		}
		s.Hear(two)
		if rest, ok := s.Rest(nil); ok && !json.Valid(continuation.Object(rest)) {
			t.Errorf("%s", continuation.Object(rest))
		}
	})
}
