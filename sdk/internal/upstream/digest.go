package upstream

import "bytes"

// digest keeps of a text of JSON that is too long to be kept what is looked at: the members of its objects down to those of a choice, of their
// strings the beginning, and of arrays the objects. What is nested deeper, as what a model writes is, leaves its brackets alone.
type digest struct {
	text  []byte
	full  bool // whether that has become too long too
	depth int
	list  [maxDepth + 1]bool // whether what is open there is an array
	some  [maxDepth + 1]bool // whether something of that array was kept
	str   bool               // within a string
	esc   bool               // behind its backslash
	size  int                // of it
}

const (
	maxDepth  = 3  // "choices", one of them, and its members
	maxString = 64 // bytes of one, of which a reason or a type has fewer
)

// read takes the next piece.
func (d *digest) read(p []byte) {
	for _, b := range p {
		switch {
		case d.str:
			d.string(b)
		case b == ' ', b == '\t', b == '\r', b == '\n':
		case b == '{', b == '[':
			d.put(b)
			if d.depth++; d.depth <= maxDepth {
				d.list[d.depth], d.some[d.depth] = b == '[', false
			}
		case b == '}', b == ']':
			d.depth = max(0, d.depth-1)
			d.keep(b)
		case b == '"':
			d.str, d.size = true, 0
			d.scalar(b)
		default:
			d.scalar(b)
		}
	}
}

// string reads on in one. What is escaped is in no word that is looked for.
func (d *digest) string(b byte) {
	d.size++
	switch {
	case d.esc:
		d.esc = false
		return
	case b == '\\':
		d.esc, b = true, '?'
	case b == '"':
		d.str = false
	}
	if !d.str || d.size <= maxString {
		d.scalar(b)
	}
}

// put begins an object or an array.
func (d *digest) put(b byte) {
	if d.depth <= maxDepth && d.list[d.depth] {
		if d.some[d.depth] {
			d.keep(',')
		}
		d.some[d.depth] = true
	}
	d.keep(b)
}

// scalar is of all else, and of the commas.
func (d *digest) scalar(b byte) {
	if d.depth <= maxDepth && !d.list[d.depth] {
		d.keep(b)
	}
}

func (d *digest) keep(b byte) {
	if d.full = d.full || len(d.text) >= maxEvent; d.depth <= maxDepth && !d.full {
		d.text = append(d.text, b)
	}
}

// value is where the JSON of a line begins.
func (j *judge) value() []byte {
	line := j.line
	if !j.marked {
		line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	}
	if j.events {
		_, line, _ = bytes.Cut(line, []byte(":"))
	}
	return line
}

// text is the line, or what is kept of a long one.
func (j *judge) text() []byte {
	if j.rest != nil {
		return j.rest.text
	}
	return j.line
}
