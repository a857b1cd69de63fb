package upstream

import (
	"encoding/json"
	"strings"
	"testing"
)

const sse, ndjson = "text/event-stream", "application/x-ndjson"

// verdict reads an answer in pieces of n bytes.
func verdict(kind, answer string, n int) string {
	j := newJudge(kind)
	for at := 0; at < len(answer); at += n {
		j.read([]byte(answer[at:min(at+n, len(answer))]))
	}
	j.close()
	switch {
	case j.failed:
		return "failed"
	case j.unfinished():
		return "unfinished"
	case j.last:
		return "ended"
	}
	return "good"
}

func TestStreamsAreJudgedByTheirStructure(t *testing.T) {
	long := strings.Repeat("x", 2*maxEvent)
	delta := `data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}` + "\n\n"
	far := `data: {"choices":[{"index":0,"delta":{"content":"` + long + `"},"finish_reason":null}]}` + "\n\n"
	wide := `data: {"choices":[{"index":0,"finish_reason":"stop"}],"x":{` + strings.Repeat(`"key":0,`, maxEvent/8) + `"key":0}}` + "\n\n" // of which too much would be kept
	big := `data: {"choices":[{"index":0,"delta":{"content":"` + long + `"},"finish_reason":"stop"}]}` + "\n\n"
	for _, c := range []struct{ want, kind, answer string }{
		// errors, as the engines send them
		{"failed", sse, `data: {"error": {"message": "m", "type": "InternalServerError", "param": null, "code": 500}}` + "\n\ndata: [DONE]\n\n"}, // vLLM
		{"failed", sse, `data: {"error":{"object":"error","message":"m","type":"E","code":400}}` + "\n\ndata: [DONE]\n\n"},                       // SGLang
		{"failed", sse, `data:{"error":"m","error_type":"generation"}` + "\n\n"},                                                                 // TGI
		{"failed", sse, `data:{"error":{"message":"m","http_status_code":422}}` + "\n\n"},                                                        // TGI
		{"failed", sse, `data: {"error":{"code":500,"message":"m","type":"server_error"}}` + "\n\n"},                                             // llama.cpp
		{"failed", sse, `error: {"code":500,"message":"m","type":"server_error"}` + "\n\n"},                                                      // llama.cpp, earlier
		{"failed", sse, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"m\"}}\n\n"},              // Anthropic
		{"failed", sse, "event: error\r\ndata: x\r\n\r\n"},
		{"failed", sse, "data: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"m\"}\n\n"}, // Responses
		{"failed", sse, "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"status\":\"failed\"}}\n\n"},
		{"failed", sse, `data: {"id":"1","error":{"code":502,"message":"m"},"choices":[{"delta":{"content":""},"finish_reason":"error"}]}` + "\n\n"},   // OpenRouter
		{"failed", sse, "data: " + chunkText + "\n\n" + `data: {"choices":[{"index":0,"delta":{},"finish_reason":"error"}]}` + "\n\ndata: [DONE]\n\n"}, // OpenRouter
		{"failed", sse, `data: {"choices":[{"index":0,"text":"","finish_reason":"abort"}]}` + "\n\ndata: [DONE]\n\n"},                                  // vLLM, SGLang
		{"failed", "application/json", `{"choices":[{"index":0,"finish_reason":"stop"},{"index":1,"finish_reason":"abort"}]}`},
		{"failed", sse, "data: {\"error\":\ndata: {\"message\":\"m\"}}\n\n"},
		{"failed", sse, `data: {"error":{"message":"` + long + `"}}` + "\n\n"},
		{"failed", sse, `data: ` + `{ "error" : { "message":"` + long + `"}}` + "\n\ndata: [DONE]\n\n"},
		{"failed", sse, `data: {"error":{"message":"m","body":{` + strings.Repeat(`"key":0,`, maxEvent/8) + `"key":0}}}` + "\n\ndata: [DONE]\n\n"}, // of which too much would be kept
		{"failed", ndjson, `{"response":"a","done":false}` + "\n" + `{"error":"m"}` + "\n"},                                                        // ollama
		{"failed", ndjson, `{"error":"m"}`},
		{"failed", "application/json", "{\n  \"error\": {\n \"message\": \"m\"}\n}"},
		// what is none
		{"good", sse, `data: {"choices":[{"delta":{"content":"{\"error\":{\"message\":\"m\"}}"},"finish_reason":"stop"}]}` + "\n\n"},
		{"good", sse, `data: {"choices":[{"delta":{"content":"\n\nevent: error\ndata: {\"error\":{\"a\":1}}\n\n"},"finish_reason":"stop"}],"error":null}` + "\n\n"},
		{"good", sse, `data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"error","arguments":"{\"error\":\"x\"}"}}]},"finish_reason":"tool_calls"}]}` + "\n\n"},
		{"good", sse, `data: {"error":null,"type":1}` + "\n\n" + `data: {"error":{}}` + "\n\n" + `data: {"error":""}` + "\n\n" + `data: {"error":false}` + "\n\n"},
		{"ended", sse, ": error\n\nevent: response.created\ndata: {\"response\":{\"error\":null}}\n\nevent: response.completed\ndata: {\"response\":{\"error\":null}}\n\n"},
		{"good", sse, "data: error\n\ndata: \"error\"\n\ndata: [\"error\"]\n\nid: error\n\nerror: none\n\n"},
		{"ended", ndjson, `{"message":{"content":"{\"error\":\"x\"}","tool_calls":[{"function":{"name":"error","arguments":{"error":"x"}}}]},"done":false}` + "\n" + `{"done":true,"error":""}` + "\n"},
		{"ended", "application/json", "{\n  \"message\": {\"tool_calls\": [{\"function\": {\"arguments\":\n    {\"error\": \"x\"}\n  }}]},\n  \"done\": true\n}"},
		{"good", "application/json", `{"choices":[{"message":{"content":"\"error\""},"finish_reason":null}]}`},
		{"good", "application/json", `{"status":"completed","error":null}`},
		{"failed", "application/json", `{"data":"` + long + `","error":"x"}`},
		{"good", sse, `data: {"choices":[{"delta":{"content":"` + long + `","error":{"a":1}},"finish_reason":"stop"}]}` + "\n\n"},
		// documents
		{"good", "application/json", "\xef\xbb\xbf [\n[0.25]]\n"},
		{"good", "application/json", `[{"data":"` + long + `"}]` + "\r\n"},
		{"good", "application/vnd.x+json", `{}`},
		{"good", "application/json", `{"data":[` + strings.Repeat(`{"index":0},`, maxEvent/8) + `{}]}`}, // of which too much would be kept
		{"unfinished", "application/json", `{"data":[` + strings.Repeat(`{"index":0},`, maxEvent/8)},
		{"unfinished", "application/json", `{"data":"` + long + `","x":{}`},
		{"unfinished", "application/json", ""},
		{"unfinished", "application/json", " \n"},
		{"unfinished", "application/vnd.x+json", ""},
		{"unfinished", "application/json", "<html><body>Welcome</body></html>"},
		{"unfinished", "application/json", `"text"`},
		{"unfinished", "application/json", `{"choices":[{"message":{"content":"hal`},
		{"unfinished", "application/json", `{"choices":[]}}`},
		{"unfinished", "application/json", "\x1b\x2f\x00\xf8\xa5\x59\x4a\x75"}, // brotli, unasked
		{"unfinished", "application/json", "<" + long + "}"},
		{"unfinished", "application/json", `{"data":"` + long + `]`},
		// ends
		{"ended", sse, "data: " + chunkText + "\r\rdata: [DONE]\r\r"},
		{"good", sse, "data: " + chunkText + "\n\ndata: " + chunkEnd + "\n\n"},
		{"ended", sse, "event: message_start\ndata: {}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"},
		{"ended", ndjson, `{"response":"a","done":false}` + "\n" + `{"response":"","done":true}` + "\n"},
		{"unfinished", sse, "data: " + chunkText + "\n\n"}, // ollama under OpenAI's API, whose model has failed
		{"unfinished", sse, `data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":""}]}` + "\n\n"},
		{"unfinished", sse, "event: message_start\ndata: {}\n\n"},
		{"unfinished", sse, "data: " + chunkEnd + "\n\ndata: {\"cho"},
		{"good", sse, "data: " + chunkEnd},
		{"ended", sse, "data: " + chunkText + "\n\ndata: [DONE]"},
		{"unfinished", ndjson, `{"response":"a","done":false}` + "\n" + `{"do`},
		{"ended", ndjson, "\xef\xbb\xbf" + `{"done":true}`},
		{"unfinished", sse, `data: {"choices":[{"index":0,"finish_reason":null},{"index":1,"finish_reason":null}]}` + "\n\n" + `data: {"choices":[{"index":0,"finish_reason":"stop"}]}` + "\n\n"},
		{"good", sse, `data: {"choices":[{"index":1,"finish_reason":"stop"}]}` + "\n\n" + `data: {"choices":[{"index":0,"finish_reason":"stop"}]}` + "\n\n" + `data: {"choices":[],"usage":{}}` + "\n\n"},
		{"unfinished", ndjson, `{"response":"a","done":false}` + "\n"},
		{"good", sse, delta + big},
		{"unfinished", sse, delta + far},
		{"unfinished", sse, delta + far + big[:len(big)/2]},
		{"good", sse, delta + big + `data: {"choices":[],"usage":{}}` + "\n\n"},
		{"ended", sse, delta + far + delta + "data: [DONE]\n\n"},
		{"unfinished", sse, `data: {"choices":[{"index":0,"finish_reason":null},{"index":1,"finish_reason":null}]}` + "\n\n" + big},
		{"failed", sse, delta + `data: {"choices":[{"index":0,"delta":{"content":"` + long + `"},"finish_reason":null}],"error":{"message":"m"}}` + "\n\n"},
		{"good", sse, delta + wide},
		{"unfinished", sse, delta + wide + delta}, // it was not the end: its choice went on behind it
		{"ended", ndjson, `{"response":"a","done":false}` + "\n" + `{"context":[` + strings.Repeat("1,", maxEvent) + `1],"done":true}` + "\n"},
		{"good", ndjson, `{"response":"a","done":false}` + "\n" + `{` + strings.Repeat(`"key":0,`, maxEvent/8) + `"done":true}` + "\n"}, // not seen, and not held against it
		{"good", sse, "data: {\"type\":\"speech.audio.delta\"}\n\n"},
	} {
		for _, n := range []int{1, 2, 7, 1000, len(c.answer)} {
			if got := verdict(c.kind, c.answer, n); got != c.want {
				t.Errorf("in pieces of %d the verdict is %s, not %s, of %.150q", n, got, c.want, c.answer)
				break
			}
		}
		if len(c.answer) > maxEvent || c.kind != sse && !strings.HasPrefix(strings.TrimSpace(c.answer), `{"`) {
			continue
		}
		for _, n := range []int{1000, 1 << 20} {
			if got := verdict(c.kind, padded(c.kind, c.answer), n); got != c.want {
				t.Errorf("with long events the verdict is %s, not %s, of %.150q", got, c.want, c.answer)
			}
		}
	}
}

// padded has each event begin with a member of more than is kept.
func padded(kind, answer string) string {
	pad := `{"pad":"` + strings.Repeat(`\"x{]\\`, maxEvent/5) + `","list":[1,[2],"x",{"a":[{}]},{}],`
	if kind == sse {
		return strings.ReplaceAll(answer, `data: {"`, `data: `+pad+`"`)
	}
	return pad + strings.ReplaceAll(answer, "\n{\"", "\n"+pad+`"`)[1:]
}

// FuzzWhatAModelWrites: no text makes an answer a failed one, nor ends it, in whatever field and stream an engine sends it.
func FuzzWhatAModelWrites(f *testing.F) {
	for _, text := range []string{"hi", `{"error":{"message":"m"}}`, "\n\nevent: error\ndata: {\"error\":\"x\"}\n\n", "data: [DONE]\n\n", "\r\n\r\nerror: {}", `"},"error":{"a":1},"x":{"`, "\u2028\x00\xff"} {
		f.Add(text, 7)
	}
	f.Fuzz(func(t *testing.T, text string, n int) {
		n = max(1, min(n, 4096))
		quoted, _ := json.Marshal(text)
		in := func(s string) string { return strings.ReplaceAll(s, "TEXT", string(quoted)) }
		open := "unfinished"
		if 3*len(quoted) > maxEvent/2 {
			return
		}
		for _, c := range []struct{ want, kind, answer string }{
			{open, sse, in(`data: {"id":TEXT,"choices":[{"delta":{"content":TEXT,"reasoning":TEXT},"logprobs":{"content":[{"token":TEXT}]},"finish_reason":null}]}` + "\n\n")},
			{open, sse, in("event: message_start\ndata: {}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":TEXT}}\n\n")},
			{"good", sse, in("event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\",\"delta\":TEXT}\n\n")},
			{open, ndjson, in(`{"message":{"content":TEXT,"thinking":TEXT,"tool_calls":[{"function":{"arguments":{"error":TEXT}}}]},"response":TEXT,"done":false}` + "\n")},
			{"good", "application/json", in(`{"choices":[{"message":{"content":TEXT}}],"text":TEXT}`)},
		} {
			if got := verdict(c.kind, c.answer, n); got != c.want {
				t.Errorf("the verdict is %s of %q", got, c.answer)
			}
		}
	})
}
