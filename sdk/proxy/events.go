package proxy

import (
	"bytes"
	"encoding/json"
)

// maxEvent bounds what is kept of one event, in bytes: a longer one ends the answer, since a piece of one would take the error's event in.
const maxEvent = 8 << 20

// events cuts a stream into its events, each with the blank line that ends it: a caller gets whole ones alone, so that what follows one
// that broke off is read for what it is.
type events struct {
	held    []byte
	scanned int
}

func (e *events) add(p []byte) { e.held = append(e.held, p...) }

// next is the next whole event, if there is one. It is good until the next call of add.
func (e *events) next() (event []byte, ok bool) {
	for {
		end := bytes.IndexByte(e.held[e.scanned:], '\n')
		if end < 0 {
			return nil, false
		}
		line := e.held[e.scanned : e.scanned+end]
		e.scanned += end + 1
		if len(bytes.TrimSuffix(line, []byte("\r"))) == 0 {
			return e.cut(e.scanned), true
		}
	}
}

// long reports whether the event that has not ended is too long.
func (e *events) long() bool { return len(e.held) > maxEvent }

func (e *events) cut(n int) []byte {
	event := e.held[:n]
	e.held, e.scanned = e.held[n:], 0
	return event
}

// rest is what stands behind the last event's end.
func (e *events) rest() []byte { return e.cut(len(e.held)) }

// data is what an event says, and whether it says anything: a comment does not.
func data(event []byte) []byte {
	var all []byte
	for line := range bytes.Lines(event) {
		value, is := bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), []byte("data:"))
		if is {
			all = append(all, bytes.TrimPrefix(value, []byte(" "))...)
		}
	}
	return all
}

// silent is the comments of an event without data, and no blank line: some clients take it for an event of no JSON. A name of such an event
// would be that of the next one.
func silent(event []byte) []byte {
	var comments []byte
	for line := range bytes.Lines(event) {
		if line[0] == ':' {
			comments = append(append(comments, bytes.TrimRight(line, "\r\n")...), '\n')
		}
	}
	return comments
}

// spoken is what of an answer, or of one event of it, are tokens.
type spoken struct {
	Choices []struct {
		Index   int             `json:"index"`
		Finish  json.RawMessage `json:"finish_reason"`
		Delta   words           `json:"delta"`
		Message words           `json:"message"`
		Text    string          `json:"text"`
	} `json:"choices"`
	Type   string          `json:"type"`
	Delta  json.RawMessage `json:"delta"`
	Output json.RawMessage `json:"output"`
}

type words struct {
	Content   json.RawMessage `json:"content"`
	Reasoning string          `json:"reasoning_content"`
	Tools     json.RawMessage `json:"tool_calls"`
}

func (w words) size() int { return text(w.Content) + len(w.Reasoning) + text(w.Tools) }

// text is how much is said in a value: of nothing, and of an empty text, none.
func text(value json.RawMessage) int {
	if s := string(value); s == "null" || s == `""` {
		return 0
	}
	return len(value)
}

// tokens counts the tokens of a piece of an answer, about: one for each event that says something, and more for a long one. It is what
// the caller's side saw, not what a provider says that it was.
func tokens(document []byte) int64 { return read(document).tokens() }

func read(document []byte) (s spoken) {
	if len(document) == 0 || document[0] != '{' || json.Unmarshal(document, &s) != nil {
		return spoken{}
	}
	return s
}

func (s spoken) tokens() int64 {
	n := text(s.Delta) + text(s.Output)
	for _, choice := range s.Choices {
		n += choice.Delta.size() + choice.Message.size() + len(choice.Text)
	}
	if n == 0 {
		return 0
	}
	return int64(max(1, n/bytesPerToken))
}
