package continuation

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
)

// Member is one member of an object of JSON, byte for byte.
type Member struct {
	Name  string
	Value json.RawMessage
}

// Members takes an object apart, and keeps the order and the bytes of what is in it: what a provider gets is what the caller wrote.
func Members(object []byte) ([]Member, error) { return members(object, false) }

// members takes the last one of those of a name where several are allowed, as who reads an answer does.
func members(object []byte, several bool) ([]Member, error) {
	d := json.NewDecoder(bytes.NewReader(object))
	if open, err := d.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("it is no JSON object")
	}
	var all []Member
	seen := make(map[string]bool)
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, errors.New("it is no JSON object")
		}
		m := Member{Name: name.(string)}
		if err := d.Decode(&m.Value); err != nil {
			return nil, errors.New("it is no JSON object")
		}
		if seen[m.Name] && !several {
			return nil, errors.New("a member stands in it twice")
		} else if seen[m.Name] {
			all = slices.DeleteFunc(all, func(own Member) bool { return own.Name == m.Name })
		}
		seen[m.Name] = true
		all = append(all, m)
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("it is no JSON object")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something stands behind its object")
	}
	return all, nil
}

// Object is what Members takes apart, but for those that have no value.
func Object(all []Member) []byte {
	out := []byte{'{'}
	for _, m := range all {
		if m.Value == nil {
			continue
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		key, _ := json.Marshal(m.Name)
		out = append(append(append(out, key...), ':'), m.Value...)
	}
	return append(out, '}')
}
