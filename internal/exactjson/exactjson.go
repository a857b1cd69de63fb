// Package exactjson reads JSON that somebody signed. encoding/json takes a key
// in any case and the last of several equal ones: one signed document would then
// say one thing to who hashes it by its exact keys and another to who reads it.
package exactjson

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
)

// maxDepth bounds how deep a document nests.
const maxDepth = 64

// ErrKeys says that a document has a key twice, or one that only looks like a
// key that is known.
var ErrKeys = errors.New("ambiguous keys")

// Unmarshal is json.Unmarshal for a document whose keys are exact: no object has
// one twice, and none is another spelling of a field of into. Keys that are not
// known are left alone.
func Unmarshal(data []byte, into any) error {
	if !json.Valid(data) {
		return json.Unmarshal(data, into) // its error says where
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	if err := value(dec, reflect.TypeOf(into), 0); err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// value reads one value, which is read into a t. nil: into nothing that is known.
func value(dec *json.Decoder, t reflect.Type, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("nested more than %d deep", maxDepth)
	}
	token, err := dec.Token()
	if err != nil {
		return err
	}
	t = plain(t)
	switch token {
	case json.Delim('{'):
		return object(dec, t, depth)
	case json.Delim('['):
		var element reflect.Type
		if t != nil && (t.Kind() == reflect.Slice || t.Kind() == reflect.Array) {
			element = t.Elem()
		}
		for dec.More() {
			if err := value(dec, element, depth+1); err != nil {
				return err
			}
		}
		_, err = dec.Token()
	}
	return err
}

func object(dec *json.Decoder, t reflect.Type, depth int) error {
	known := keys(t)
	seen := make(map[string]bool)
	for dec.More() {
		token, err := dec.Token()
		if err != nil {
			return err
		}
		key, _ := token.(string)
		if seen[key] {
			return fmt.Errorf("%w: %.40q stands twice in one object", ErrKeys, key)
		}
		seen[key] = true
		field, ok := known[key]
		if name := lookAlike(known, key); !ok && name != "" {
			return fmt.Errorf("%w: %.40q is no spelling of %q", ErrKeys, key, name)
		}
		if t != nil && t.Kind() == reflect.Map {
			field = t.Elem()
		}
		if err := value(dec, field, depth+1); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}

// lookAlike is the known key that encoding/json would take a key for.
func lookAlike(known map[string]reflect.Type, key string) string {
	for name := range known {
		if strings.EqualFold(name, key) {
			return name
		}
	}
	return ""
}

// plain is what encoding/json fills in: nothing that it knows the fields of,
// where a type reads itself.
func plain(t reflect.Type) reflect.Type {
	for t != nil {
		if t.Implements(unmarshaler) || reflect.PointerTo(t).Implements(unmarshaler) ||
			t.Implements(textUnmarshaler) || reflect.PointerTo(t).Implements(textUnmarshaler) || t.Kind() == reflect.Interface {
			return nil
		}
		if t.Kind() != reflect.Pointer {
			return t
		}
		t = t.Elem()
	}
	return nil
}

var (
	unmarshaler     = reflect.TypeFor[json.Unmarshaler]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

var cache sync.Map // of keys, by type

// keys are those that encoding/json knows of a type.
func keys(t reflect.Type) map[string]reflect.Type {
	if known, ok := cache.Load(t); ok {
		return known.(map[string]reflect.Type)
	}
	known := fields(t)
	cache.Store(t, known)
	return known
}

// fields are the keys of a struct, with those of the structs that it embeds.
func fields(t reflect.Type) map[string]reflect.Type {
	if t == nil || t.Kind() != reflect.Struct {
		return nil
	}
	known := make(map[string]reflect.Type)
	for i := range t.NumField() {
		f := t.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Tag.Get("json") == "-", !f.IsExported() && !f.Anonymous:
		case f.Anonymous && name == "":
			inner := f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			for name, t := range fields(inner) {
				known[name] = t
			}
		case name == "":
			known[f.Name] = f.Type
		default:
			known[name] = f.Type
		}
	}
	return known
}
