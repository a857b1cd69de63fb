package wire

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
)

// FuzzCanonical: offers and challenges are hashed in this form, and another implementation must come to the same one. It
// says what the document says, and there is one of it.
func FuzzCanonical(f *testing.F) {
	f.Add([]byte(`{"b":[1,-2,{"z":null,"a":true}],"a":"\u003c\u2028\\u2029\\\\u2028\n"}`))
	f.Add([]byte(`{"amount":"18446744073709551616","n":18446744073709551616}`))
	f.Fuzz(func(t *testing.T, document []byte) {
		before, ok := tree(document)
		if !ok {
			return
		}
		once, err := canonical(before)
		if err != nil {
			t.Fatalf("%s: %v", document, err)
		}
		after, ok := tree(once)
		if !ok || !reflect.DeepEqual(after, before) {
			t.Fatalf("%s became %s", document, once)
		}
		if twice, err := canonical(json.RawMessage(once)); err != nil || !bytes.Equal(twice, once) {
			t.Fatalf("%s became %s, and that %s, %v", document, once, twice, err)
		}
		if bytes.Contains(bytes.ReplaceAll(once, []byte(`\\`), nil), []byte(`\u202`)) {
			t.Fatalf("%s has an escape that RFC 8785 does not write", once)
		}
	})
}

// tree reads a document as a verifier does: numbers as they stand, and strings as Unicode.
func tree(document []byte) (tree any, ok bool) {
	dec := json.NewDecoder(bytes.NewReader(document))
	dec.UseNumber()
	return tree, dec.Decode(&tree) == nil && !dec.More()
}

// FuzzValues: amounts, accounts and bytes in a stranger's document. What is taken is within its bounds, and there is one
// way to write it, but for the case of hex digits.
func FuzzValues(f *testing.F) {
	for _, text := range []string{"0", "79228162514264337593543950335", "79228162514264337593543950336", "01", "1e3", "-1", "+1", " 1", "٣",
		"", "0x", "0x0", "0xFf", "0x52908400098527886E0F7030069857D2E4169EE7", "0X52908400098527886E0F7030069857D2E4169EE7", "52908400098527886E0F7030069857D2E4169EE700"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var amount Amount
		if amount.UnmarshalText([]byte(text)) == nil {
			if written, err := amount.MarshalText(); err != nil || string(written) != text || amount.BitLen() > 96 {
				t.Fatalf("%q is an amount of %d bits, written %q, %v", text, amount.BitLen(), written, err)
			}
		}
		var account Address
		if account.UnmarshalText([]byte(text)) == nil && !sameHex(t, account, text) {
			t.Fatalf("%q is account %s", text, account)
		}
		var raw Bytes
		if raw.UnmarshalText([]byte(text)) == nil && text != "" && !sameHex(t, raw, text) { // no bytes are "0x", and also no text
			t.Fatalf("%q is %x", text, []byte(raw))
		}
	})
}

func sameHex(t *testing.T, value interface{ MarshalText() ([]byte, error) }, text string) bool {
	t.Helper()
	written, err := value.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	return bytes.EqualFold(written, []byte(text))
}
