package upstream

import (
	"io"
	"net"
	"strings"
	"testing"
)

// TestRoutesOfOtherTexts: where an engine's text may come as it is, one under JSON's type is no failure, and neither is nothing where a status says so.
func TestRoutesOfOtherTexts(t *testing.T) {
	for path, c := range map[string]struct {
		text string
		want Outcome
	}{
		"/v1/audio/transcriptions": {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", Completed},
		chat:                       {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n", Failed},
		"/v1/embeddings":           {"HTTP/1.1 204 No Content\r\n", Completed},
	} {
		g := rigAt(t, raw(t, func(conn net.Conn) {
			_, _ = io.WriteString(conn, c.text+"Content-Type: application/json\r\nConnection: close\r\n\r\nHi")
		}), nil)
		_, _, _ = g.post(t, path, "{}")
		if r := g.result(t); r.Outcome != c.want {
			t.Errorf("%s ended as %s", path, r)
		}
	}
}

// TestDocumentThatIsCut: an answer that is no whole document has failed, whatever its length was said to be.
func TestDocumentThatIsCut(t *testing.T) {
	const document, stream = "Content-Type: application/json\r\n\r\n", "Content-Type: text/event-stream\r\n\r\n"
	long := `{"data":[` + strings.Repeat("0.25,", maxEvent)
	for name, c := range map[string]struct {
		text string
		want Outcome
	}{
		"a document":               {document + `{"choices":[{"message":{"content":"hal`, Failed},
		"a long document":          {document + long, Failed},
		"a whole document":         {document + `{"choices":[{"message":{"content":"half"}}]}` + "\n", Completed},
		"a whole document, a BOM":  {document + "\xef\xbb\xbf{}", Completed},
		"a long document, whole":   {document + long + "1]}\r\n", Completed},
		"a document of known size": {"Content-Length: 1\r\n" + document + "{", Failed},
		"nothing, of known size":   {"Content-Length: 0\r\n" + document, Failed},
		"nothing, in chunks":       {"Transfer-Encoding: chunked\r\n" + document + "0\r\n\r\n", Failed},
		"a page":                   {"Content-Length: 13\r\n" + document + "<html></html>", Failed},
		"an error behind a BOM":    {stream + "\xef\xbb\xbfdata: " + `{"error":{"message":"x"}}` + "\n\n", Failed},
		"an error with true":       {document + `{"error":true,"message":"out of memory"}`, Failed},
		"one of two choices":       {stream + `data: {"choices":[{"index":0,"finish_reason":null},{"index":1,"finish_reason":null}]}` + "\n\n" + `data: {"choices":[{"index":0,"finish_reason":"stop"}]}` + "\n\n", Failed},
		"a line that is cut":       {stream + "data: " + chunkEnd + "\n\ndata: {\"cho", Failed},
		"a line without its end":   {stream + "data: " + chunkEnd, Completed},
	} {
		t.Run(name, func(t *testing.T) {
			g := rigAt(t, raw(t, func(conn net.Conn) { _, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nConnection: close\r\n"+c.text) }), nil)
			_, _, _ = g.post(t, chat, "{}")
			if r := g.result(t); r.Outcome != c.want {
				t.Errorf("it ended as %s", r)
			}
		})
	}
}
