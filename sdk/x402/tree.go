package x402

import (
	"bytes"
	"encoding"
	"encoding/json"
	"fmt"

	"github.com/gpupay/gpupay/sdk/wire"
)

// maxDepth bounds how deep a message nests; ours need 6.
const maxDepth = 16

// An object is one object of a message that is being read. Its methods return
// zero after the first thing that is wrong, which they note for all objects of
// the message. encoding/json would match names without regard to case and take
// the last of two equal ones.
type object struct {
	at     string // where it stands, for errors
	fields map[string]any
	err    *error
}

// parse reads a message, refusing an object that has one name twice.
func parse(raw []byte) (object, error) {
	if !json.Valid(raw) {
		return object{}, malformed("not JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	tree, err := parseValue(dec, 0)
	if err != nil {
		return object{}, err
	}
	fields, ok := tree.(map[string]any)
	if !ok {
		return object{}, malformed("not a JSON object")
	}
	return object{fields: fields, err: new(error)}, nil
}

func parseValue(dec *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, malformed("nested more than %d deep", maxDepth)
	}
	token, err := dec.Token()
	if err != nil {
		return nil, malformed("%v", err)
	}
	switch token {
	case json.Delim('{'):
		return parseFields(dec, depth)
	case json.Delim('['):
		return parseArray(dec, depth)
	}
	return token, nil
}

func parseFields(dec *json.Decoder, depth int) (any, error) {
	fields := make(map[string]any)
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return nil, malformed("%v", err)
		}
		name, _ := token.(string)
		if _, twice := fields[name]; twice {
			return nil, malformed("%.40q stands twice in one object", name)
		}
		if fields[name], err = parseValue(dec, depth+1); err != nil {
			return nil, err
		}
	}
	_, err := dec.Token()
	return fields, err
}

func parseArray(dec *json.Decoder, depth int) (any, error) {
	array := []any{}
	for dec.More() {
		value, err := parseValue(dec, depth+1)
		if err != nil {
			return nil, err
		}
		array = append(array, value)
	}
	_, err := dec.Token()
	return array, err
}

// fail notes the first thing that is wrong.
func (o object) fail(name string, err error) {
	if *o.err == nil {
		*o.err = fmt.Errorf("%s: %w", o.path(name), err)
	}
}

func (o object) path(name string) string {
	if o.at == "" {
		return name
	}
	return o.at + "." + name
}

// has reports whether a field stands there. null is how some writers leave one
// out.
func (o object) has(name string) bool { return o.fields[name] != nil }

func (o object) object(name string) object {
	fields, ok := o.fields[name].(map[string]any)
	if !ok {
		o.fail(name, malformed("not an object"))
	}
	return object{at: o.path(name), fields: fields, err: o.err}
}

// optional is an object that may be left out.
func (o object) optional(name string) object {
	if !o.has(name) {
		return object{at: o.path(name), err: o.err}
	}
	return o.object(name)
}

func (o object) text(name string) string {
	text, ok := o.fields[name].(string)
	if !ok {
		o.fail(name, malformed("not a string"))
	}
	return text
}

// note is a text that may be left out.
func (o object) note(name string) string {
	if !o.has(name) {
		return ""
	}
	return o.text(name)
}

// filled is a text that may not be empty.
func (o object) filled(name string) string {
	text := o.text(name)
	if text == "" {
		o.fail(name, malformed("empty"))
	}
	return text
}

// into reads a text as a value that checks itself.
func (o object) into(name string, value encoding.TextUnmarshaler) {
	text, ok := o.fields[name].(string)
	if !ok {
		o.fail(name, malformed("not a string"))
		return
	}
	if err := value.UnmarshalText([]byte(text)); err != nil {
		o.fail(name, err)
	}
}

func (o object) amount(name string) (a wire.Amount) {
	o.into(name, &a)
	return a
}

// someAmount is an amount that may be left out.
func (o object) someAmount(name string) *wire.Amount {
	if !o.has(name) {
		return nil
	}
	a := o.amount(name)
	return &a
}

func (o object) address(name string) wire.Address {
	a, err := parseAddress(o.text(name))
	if err != nil {
		o.fail(name, err)
	}
	return a
}

func (o object) hash(name string) (h Hash) {
	o.into(name, &h)
	return h
}

func (o object) signature(name string) (s Signature) {
	o.into(name, &s)
	return s
}

// number is a whole JSON number, written without exponent or fraction.
func (o object) number(name string, most uint64) uint64 {
	number, _ := o.fields[name].(json.Number)
	v, ok := parseUint(number.String(), most)
	if !ok {
		o.fail(name, malformed("not a whole number from 0 to %d", most))
	}
	return v
}

func (o object) flag(name string) bool {
	flag, ok := o.fields[name].(bool)
	if !ok {
		o.fail(name, malformed("not true or false"))
	}
	return flag
}

// version refuses messages of other versions of x402, which look alike.
func (o object) version() {
	if v := o.number("x402Version", maxSafe); v != Version {
		o.fail("x402Version", malformed("%d, this program reads %d", v, Version))
	}
}

// document is an object as JSON, to be echoed: nothing if it was left out.
func (o object) document() json.RawMessage {
	if o.fields == nil {
		return nil
	}
	raw, err := marshal(o.fields)
	if err != nil {
		o.fail("", malformed("%v", err))
	}
	return raw
}
