// Package evidence is what may be kept, and shown to others, of what a provider sent and a payer refused.
package evidence

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
)

// What evidence may not hold: it is shown to strangers. Everything else of it is
// kept as it came.
const (
	keySecret = "secret"
	keyAccess = "access"
	removed   = "(cut)"
)

var secretKey = regexp.MustCompile(`(?i)"(` + keySecret + `|` + keyAccess + `)"\s*:`)

// WithoutSecrets cuts a lease's secret and its access document out of what a provider
// sent, wherever they are in it. What is no JSON is cut off where one begins.
func WithoutSecrets(document []byte) []byte {
	at := secretKey.FindIndex(document)
	if at == nil {
		return document
	}
	dec := json.NewDecoder(bytes.NewReader(document))
	dec.UseNumber()
	var tree any
	if err := dec.Decode(&tree); err != nil || dec.More() {
		return append(bytes.Clone(document[:at[1]]), removed...)
	}
	cutKeys(tree)
	kept, err := json.Marshal(tree)
	if err != nil {
		return append(bytes.Clone(document[:at[1]]), removed...)
	}
	return kept
}

func cutKeys(tree any) {
	switch v := tree.(type) {
	case map[string]any:
		for key, below := range v {
			if strings.EqualFold(key, keySecret) || strings.EqualFold(key, keyAccess) {
				v[key] = removed
				continue
			}
			cutKeys(below)
		}
	case []any:
		for _, below := range v {
			cutKeys(below)
		}
	}
}

// Redact is WithoutSecrets for what goes into a bundle: the values that the keeper
// knows are cut as well, under whatever name a provider sent them.
func Redact(document string, secrets ...string) string {
	text := string(WithoutSecrets([]byte(document)))
	for _, s := range secrets {
		if len(s) >= 8 { // shorter ones are words
			text = strings.ReplaceAll(text, s, removed)
		}
	}
	return text
}
