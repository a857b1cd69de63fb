package continuation

import "bytes"

// MaxEvent bounds what is kept of one event, in bytes: a longer one ends the answer, since a piece of one would take the error's event in.
const MaxEvent = 8 << 20

// Events cuts a stream into its events, each with the blank line that ends it: a caller gets whole ones alone, so that what follows one
// that broke off is read for what it is. Lines end by CR, LF or both, and a byte order mark may be at the beginning; those passed on end by LF.
type Events struct {
	held    []byte
	scanned int
	cr      bool // whether the last byte ended a line, of which a line feed is a part
	marked  bool // whether a byte order mark was looked for
}

// Add takes the next piece of the stream.
func (e *Events) Add(p []byte) {
	if e.cr && len(p) > 0 {
		p, e.cr = bytes.TrimPrefix(p, []byte{'\n'}), false
	}
	if e.cr = e.cr || bytes.HasSuffix(p, []byte{'\r'}); bytes.IndexByte(p, '\r') >= 0 {
		p = bytes.ReplaceAll(bytes.ReplaceAll(p, []byte("\r\n"), []byte{'\n'}), []byte{'\r'}, []byte{'\n'})
	}
	e.held = append(e.held, p...)
	if mark := []byte("\xef\xbb\xbf"); !e.marked && !(len(e.held) < len(mark) && bytes.HasPrefix(mark, e.held)) {
		e.held, e.marked = bytes.TrimPrefix(e.held, mark), true
	}
}

// Next is the next whole event, if there is one. It is good until the next call of Add.
func (e *Events) Next() (event []byte, ok bool) {
	for {
		end := bytes.IndexByte(e.held[e.scanned:], '\n')
		if end < 0 {
			return nil, false
		}
		line := e.held[e.scanned : e.scanned+end]
		e.scanned += end + 1
		if len(line) == 0 {
			return e.cut(e.scanned), true
		}
	}
}

// Long reports whether the event that has not ended is too long.
func (e *Events) Long() bool { return len(e.held) > MaxEvent }

func (e *Events) cut(n int) []byte {
	event := e.held[:n]
	e.held, e.scanned = e.held[n:], 0
	return event
}

// Rest is what stands behind the last event's end.
func (e *Events) Rest() []byte { return e.cut(len(e.held)) }

// Data is what an event says, and whether it says anything: a comment does not.
func Data(event []byte) []byte {
	var all []byte
	for line := range bytes.Lines(event) {
		value, is := bytes.CutPrefix(bytes.TrimRight(line, "\r\n"), []byte("data:"))
		if is {
			all = append(all, bytes.TrimPrefix(value, []byte(" "))...)
		}
	}
	return all
}

// Comments is the comments of an event without data, and no blank line: some clients take it for an event of no JSON. A name of such an event
// would be that of the next one.
func Comments(event []byte) []byte {
	var comments []byte
	for line := range bytes.Lines(event) {
		if line[0] == ':' {
			comments = append(append(comments, bytes.TrimRight(line, "\r\n")...), '\n')
		}
	}
	return comments
}
