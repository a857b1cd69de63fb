package metering_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
)

func TestRecordJSONRefuses(t *testing.T) {
	good, err := json.Marshal(rig.Signed(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"a hash in capitals":     {`"leaseId":"0x00`, `"leaseId":"0x0A`},
		"a short hash":           {`"leaseId":"0x00`, `"leaseId":"0x`},
		"no 0x":                  {`"leaseId":"0x00`, `"leaseId":"0000`},
		"a leading zero":         {`"nanos":"1000000000","devices"`, `"nanos":"01000000000","devices"`},
		"a plus":                 {`"nanos":"1000000000","devices"`, `"nanos":"+1000000000","devices"`},
		"over 64 bits":           {`"nanos":"1000000000","devices"`, `"nanos":"18446744073709551616","devices"`},
		"a number for an amount": {`"owed":"1555"`, `"owed":1555`},
		"a negative amount":      {`"owed":"1555"`, `"owed":"-1555"`},
		"a hex amount":           {`"owed":"1555"`, `"owed":"0x613"`},
		"an empty amount":        {`"owed":"1555"`, `"owed":""`},
		"over 96 bits":           {`"owed":"1555"`, `"owed":"79228162514264337593543950336"`},
		"negative devices":       {`"devices":1`, `"devices":-1`},
		"a short signature":      {`"signature":"0x`, `"signature":"0x00`},
		"no object":              {string(good), `[]`},
		"an unquoted total":      {`"total":"1000000000"`, `"total":1000000000`},
	} {
		bad := strings.Replace(string(good), change[0], change[1], 1)
		if bad == string(good) {
			t.Fatalf("%s: the case changes nothing", name)
		}
		var s metering.SignedRecord
		if err := json.Unmarshal([]byte(bad), &s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzRecordJSON(f *testing.F) {
	good, err := json.Marshal(rig.Signed(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"record":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var s, again metering.SignedRecord
		if json.Unmarshal(b, &s) != nil {
			return
		}
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatalf("does not read what it wrote: %v", err)
		}
		if again.Record != s.Record || again.Evidence.Hash() != s.Evidence.Hash() {
			t.Fatalf("%s came back as %s", b, out)
		}
	})
}
