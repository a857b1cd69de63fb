package evidence

import (
	"strings"
	"testing"
)

// TestRedact: a lease's secret and access are cut out of evidence wherever they stand and however they are spelled, also out
// of what is no JSON; everything else stays as it came.
func TestRedact(t *testing.T) {
	for _, document := range []string{
		`{"leaseId":"0x01","secret":"hush-hush","access":{"ssh":"hush-hush"}}`,
		`{"lease":{"Access":"hush-hush","sequence":"1"}}`,
		`[{"deep":[{"SECRET" : "hush-hush"}]}]`,
		`{"secret":"a","\u0073ecret":"hush-hush"}`,
		"event: lease\ndata: {\"secret\":\"hush-hush\",\"x\":1}\n\n",
		`{"devices":["a"],"access":"hush-hush`,
		`{"access":"x"} hush-hush`,
	} {
		if got := string(WithoutSecrets([]byte(document))); strings.Contains(got, "hush-hush") {
			t.Errorf("%s: %s", document, got)
		}
	}
	for _, document := range []string{`{"accepted":{"sequence":"1"},"refused":{"sequence": "1"}}`, "not JSON", ""} {
		if got := WithoutSecrets([]byte(document)); string(got) != document {
			t.Errorf("%s: %s", document, got)
		}
	}
	big := `{"amount":123456789012345678901234567890,"access":1}`
	if got := string(WithoutSecrets([]byte(big))); !strings.Contains(got, "123456789012345678901234567890") {
		t.Errorf("a number was rounded: %s", got)
	}
}
