package cli

import (
	"bytes"
	"io"
	"log"
)

// quiet keeps of what the standard library says by the standard logger, at no level, what its servers say: its clients quote what came over a
// connection, such as the rest of an answer behind a Content-Length that is too short, and that may be anybody's prompt.
type quiet struct{ io.Writer }

func (q quiet) Write(line []byte) (int, error) {
	if at := bytes.Index(line, []byte("http: ")); at < 0 || at > len("2006/01/02 15:04:05 ") || bytes.Contains(line, []byte("http: proxy error")) {
		return len(line), nil
	}
	return q.Writer.Write(line)
}

// hush has the standard logger be quiet.
func hush(to io.Writer) { log.SetOutput(quiet{to}) }
