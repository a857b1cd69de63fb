package exactjson

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
)

type inner struct {
	Count int `json:"count"`
}

type embedded struct {
	Amount string `json:"amount"`
}

type document struct {
	embedded
	Key   string           `json:"key"`
	One   inner            `json:"one"`
	Many  []inner          `json:"many"`
	Named map[string]inner `json:"named"`
	Far   *inner           `json:"far"`
	Raw   json.RawMessage  `json:"raw"`
	Free  any              `json:"free"`
	Bare  int
}

func TestKeysAreExact(t *testing.T) {
	for text, want := range map[string]bool{
		`{"amount":"1","key":"k","one":{"count":1},"many":[{"count":2}],"Bare":3}`: true,
		`{"unknown":1,"Unknown":2,"raw":{"a":1,"A":2},"free":{"b":1,"B":2}}`:       true,
		`{"named":{"a":{"count":1},"A":{"count":2}}}`:                              true,
		`{"amount":"1","Amount":"2"}`:                                              false,
		`{"AMOUNT":"2"}`:                                                           false,
		"{\"\u212aey\":\"k\"}":                                                     false, // the Kelvin sign folds to k
		`{"\u0061mount":"1","amount":"2"}`:                                         false,
		`{"key":"a","key":"b"}`:                                                    false,
		`{"one":{"Count":1}}`:                                                      false,
		`{"many":[{"count":1},{"COUNT":1}]}`:                                       false,
		`{"named":{"a":{"Count":1}}}`:                                              false,
		`{"far":{"counT":1}}`:                                                      false,
		`{"unknown":{"a":1,"a":2}}`:                                                false,
		`{"raw":{"a":1,"a":2}}`:                                                    false,
		`{"bare":1}`:                                                               false,
	} {
		var exact, usual document
		err := Unmarshal([]byte(text), &exact)
		if (err == nil) != want || err != nil && !errors.Is(err, ErrKeys) {
			t.Errorf("%s: %v", text, err)
		}
		if err == nil && (json.Unmarshal([]byte(text), &usual) != nil || !reflect.DeepEqual(exact, usual)) {
			t.Errorf("%s: %+v, want %+v", text, exact, usual)
		}
	}
	for _, text := range []string{``, `{`, `[1]`, `{"one":3}`, `{} {}`} {
		if err := Unmarshal([]byte(text), new(document)); err == nil {
			t.Errorf("%q was read", text)
		}
	}
}

// FuzzReadsOneWay: whatever is read is read the same way by who looks at exact
// keys alone.
func FuzzReadsOneWay(f *testing.F) {
	f.Add([]byte(`{"amount":"1","Amount":"2"}`))
	f.Add([]byte(`{"amount":"1","one":{"count":1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var d document
		if Unmarshal(data, &d) != nil {
			return
		}
		var tree map[string]any
		if json.Unmarshal(data, &tree) != nil {
			return // null
		}
		if text, _ := tree["amount"].(string); text != d.Amount {
			t.Fatalf("%s: amount %q by its exact key, %q as it was read", data, text, d.Amount)
		}
	})
}
