package upstream

import (
	"bytes"
	"encoding/json"
	"mime"
	"strings"
)

// maxEvent bounds what is kept of one event, in bytes. Of one that is longer a digest is; one of which that is longer too is no error's, unless
// it begins as one.
const maxEvent = 64 << 10

// judge reads an answer as it passes, for what the upstream says of it by its structure: an error, and the end. What a model
// writes is within strings of JSON and is not looked at.
type judge struct {
	line  []byte  // of the line that is being read
	rest  *digest // of all of it, once it is longer than that; nil: it is not
	long  bool    // whether the event is longer than what is kept
	cr    bool    // whether the byte before was a carriage return, which ends a line by itself
	name  string  // of the event
	data  []byte  // of the event
	begun bool    // whether the event has data

	split  func(*judge) // what to do at the end of a line; nil where the answer is one document
	events bool         // whether it is a stream of events
	any    bool         // whether a document may be any text: its route answers with what it likes, and who breaks off is seen without reading
	marked bool         // whether a byte order mark was looked for, before the first line
	tail   byte         // the last one that is no space
	closed bool         // whether the answer is over

	failed bool         // an error was reported
	spoken bool         // something came in it
	opened bool         // it is a stream of a kind that has an end
	ended  map[int]bool // whether each choice in it has ended, by its index
	last   bool         // nothing comes after
	blind  bool         // an event could not be read, and may have been the end
	torn   bool         // it is over in the middle of a line, or of a document
}

// maxChoices bounds the choices of an answer whose ends are looked at.
const maxChoices = 1024

// newJudge is nil for an answer that is not judged.
func newJudge(contentType string) *judge {
	kind, _, _ := mime.ParseMediaType(contentType)
	j := &judge{ended: make(map[int]bool)}
	switch {
	case kind == "text/event-stream":
		j.split, j.events = (*judge).field, true
	case kind == "application/x-ndjson":
		j.split = (*judge).document
	case kind == "application/json", strings.HasSuffix(kind, "+json"):
	default:
		return nil
	}
	return j
}

// read takes the next piece.
func (j *judge) read(p []byte) {
	if j.split == nil {
		j.keep(p)
		return
	}
	for len(p) > 0 {
		if j.cr && p[0] == '\n' {
			p = p[1:]
		}
		j.cr = false
		end := bytes.IndexAny(p, "\r\n")
		if end < 0 {
			j.keep(p)
			return
		}
		j.keep(p[:end])
		j.cr = p[end] == '\r'
		p = p[end+1:]
		j.mark()
		j.split(j)
		j.line, j.rest = j.line[:0], nil
	}
}

// mark takes a byte order mark away.
func (j *judge) mark() {
	if !j.marked {
		j.line = bytes.TrimPrefix(j.line, []byte("\xef\xbb\xbf"))
	}
	j.marked = true
}

// close is the end of the answer.
func (j *judge) close() {
	j.mark()
	j.closed = true
	switch {
	case j.split == nil:
		j.torn = !j.any && !j.whole()
		j.document()
	case len(j.line) > 0:
		j.split(j)
	}
	j.line = j.line[:0]
	j.dispatch()
}

// whole says whether a document is an object or an array, to its end.
func (j *judge) whole() bool {
	text := bytes.TrimLeft(j.text(), " \t\r\n")
	if len(text) == 0 || text[0] != '{' && text[0] != '[' {
		return false
	}
	return !j.long && json.Valid(text) || j.long && j.tail == text[0]+2 // in ASCII
}

// unfinished says whether an answer that is over has no end.
func (j *judge) unfinished() bool {
	if j.split != nil && !j.spoken { // whoever streams has an answer in it
		return true
	}
	if j.torn || j.split == nil || !j.opened || j.last || j.blind {
		return j.torn && !j.last
	}
	for _, ended := range j.ended {
		if !ended {
			return true
		}
	}
	return len(j.ended) == 0
}

func (j *judge) keep(p []byte) {
	if text := bytes.TrimRight(p, " \t\r\n"); len(text) > 0 {
		j.tail = text[len(text)-1]
	}
	room := min(len(p), maxEvent-len(j.line))
	if j.line = append(j.line, p[:room]...); room == len(p) {
		return
	}
	if j.rest == nil {
		j.rest = new(digest)
		j.rest.read(j.value())
	}
	j.rest.read(p[room:])
	j.long = j.long || j.rest.full
}

// field is a line of an event stream.
func (j *judge) field() {
	if len(j.line) == 0 {
		j.dispatch()
		return
	}
	name, value, _ := bytes.Cut(j.line, []byte(":"))
	value = bytes.TrimPrefix(value, []byte(" "))
	switch string(name) {
	case "event":
		j.name, j.begun = string(value[:min(len(value), 64)]), true
	case "data":
		if j.rest != nil {
			value = j.rest.text
		}
		if len(j.data) > 0 {
			j.data = append(j.data, '\n')
		}
		room := max(0, maxEvent-len(j.data))
		j.data, j.begun, j.long = append(j.data, value[:min(len(value), room)]...), true, j.long || len(value) > room
	case "error": // llama.cpp's of before 2025, which no reader of events sees
		j.failed = j.failed || bytes.HasPrefix(value, []byte("{"))
	}
}

// dispatch is the end of an event.
func (j *judge) dispatch() {
	if j.begun {
		j.inspect(j.name, j.data)
	}
	j.name, j.data, j.begun, j.long = "", j.data[:0], false, false
}

// document is the end of a line that is an event by itself.
func (j *judge) document() {
	j.inspect("", j.text())
	j.long = false
}

// chunk is what is read of one event: of OpenAI's and Anthropic's streams, TGI's, or a line of ollama's.
type chunk struct {
	Error   json.RawMessage `json:"error"`
	Type    json.RawMessage `json:"type"`
	Done    json.RawMessage `json:"done"`
	Choices []struct {
		Index        int             `json:"index"`
		FinishReason json.RawMessage `json:"finish_reason"`
	} `json:"choices"`
}

// inspect judges an event.
func (j *judge) inspect(name string, data []byte) {
	data = bytes.TrimSpace(data)
	j.spoken = j.spoken || len(data) > 0
	if bytes.Equal(data, []byte("[DONE]")) {
		j.last = true
		return
	}
	var c chunk
	if len(data) > 0 && data[0] == '{' && isSyntax(json.Unmarshal(data, &c)) {
		c = chunk{}
		j.torn = j.torn || j.closed && j.split != nil && (!j.long || j.tail != '}')
		j.blind = j.blind || j.long
		j.failed = j.failed || j.long && beginsAsError(data)
	}
	if says(c.Error) {
		j.failed = true
	}
	kind := name
	if kind == "" {
		_ = json.Unmarshal(c.Type, &kind)
	}
	j.kind(kind)
	for _, choice := range c.Choices {
		j.opened = true
		if _, known := j.ended[choice.Index]; known || len(j.ended) < maxChoices {
			j.ended[choice.Index] = j.finish(choice.FinishReason) || j.ended[choice.Index]
		}
	}
	if len(c.Choices) > 0 && len(j.ended) == 1 { // what could not be read was not the end: its one choice goes on
		j.blind = false
	}
	switch string(c.Done) {
	case "false":
		j.opened = true
	case "true":
		j.last = true
	}
}

// finish says whether a choice has ended, by its "finish_reason". An engine says "abort" or "error" of a request that it has given up.
func (j *judge) finish(reason json.RawMessage) bool {
	switch string(reason) {
	case "", "null", `""`:
		return false
	case `"abort"`, `"error"`:
		j.failed = true
	}
	return true
}

// kind judges an event by its name, or by its type where it has none.
func (j *judge) kind(kind string) {
	switch kind {
	case "error", "response.failed":
		j.failed = true
	case "response.completed", "response.incomplete", "message_stop":
		j.last = true
	case "message_start", "response.created":
		j.opened = true
	}
}

// isSyntax says whether data is no JSON, or is cut: a field of another type than expected is no reason to leave the others unread.
func isSyntax(err error) bool {
	_, mistyped := err.(*json.UnmarshalTypeError)
	return err != nil && !mistyped
}

// says says whether a value of "error" reports one: true, or an object or a text that is not empty. Servers that put the key into
// every answer have null there.
func says(value json.RawMessage) bool {
	if len(value) < 3 {
		return false
	}
	switch value[0] {
	case '"', 't':
		return true
	case '{':
		return len(bytes.TrimSpace(value[1:len(value)-1])) > 0
	}
	return false
}

// beginsAsError says whether an event that is too long to be read whole is an error's: one that repeats the prompt.
func beginsAsError(data []byte) bool {
	start := strings.Map(func(r rune) rune {
		if r == ' ' || r == '\n' || r == '\t' {
			return -1
		}
		return r
	}, string(data[:min(len(data), 64)]))
	return strings.HasPrefix(start, `{"error":{"`) || strings.HasPrefix(start, `{"error":"`)
}
