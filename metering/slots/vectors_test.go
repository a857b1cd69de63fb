package slots_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/metering"
)

var update = flag.Bool("update", false, "write testdata/evidence.json again")

const vectorFile = "testdata/evidence.json"

// vectors are to check another implementation with: canonical evidence, the hash that a record holds of it, the record's digest, and what is refused.
type vectors struct {
	Accepted []vector  `json:"accepted"`
	Refused  []refused `json:"refused"`
}

type vector struct {
	Name     string          `json:"name"`
	Evidence string          `json:"evidence"` // its canonical form
	Hash     common.Hash     `json:"hash"`     // keccak256 of that
	Record   metering.Record `json:"record"`
	Digest   common.Hash     `json:"digest"` // of the record, on chain 31337 and escrow 0x..44
}

type refused struct {
	Name     string `json:"name"`
	Evidence string `json:"evidence"`
	Says     string `json:"says"`
}

// accepted are records of three slots on two GPUs: of three requests, of what is carried over to the next, and of more than are listed.
func accepted(t *testing.T) []vector {
	s := newService(t, 3, gpu, second)
	for _, d := range s.devices {
		s.ok(s.meter.Describe("sim", metering.Device{UUID: d, Name: "Good GPU", MemoryBytes: 80 << 30, BootID: "boot", PCI: "0000:01:00.0"}))
	}
	s.every(1000, 3000)
	records := s.records(lease, 3,
		func() {
			s.take(lease, 1, 1000)
			s.take(lease, 2, 1500)
			s.take(lease, 4, 1500)
			s.give(lease, 1, 2000, metering.RequestDone)
			s.give(lease, 2, 2250, metering.RequestAborted)
			s.give(lease, 4, 2500, metering.RequestFailed)
		},
		func() {
			s.take(lease, 3, 2500)
			s.read(4000, second)
			s.every(5000, 6000)
			s.give(lease, 3, 5501, metering.RequestDone)
		},
		func() {
			for id := uint64(10); id < 80; id++ {
				s.take(lease, id, 6000)
				s.give(lease, id, 6000+int64(id), metering.RequestDone)
			}
			s.every(7000, 14000)
		})
	var all []vector
	for i, name := range []string{"three requests", "a lost GPU, and a rest that was carried over", "more than are listed"} {
		r := records[i]
		all = append(all, vector{name, string(r.Evidence.Encode()), r.Evidence.Hash(), r.Record, r.Digest(s.domain())})
	}
	return all
}

// refusals are changes of the first accepted vector.
func refusals(good string) []refused {
	var all []refused
	for _, c := range [][4]string{
		{"an unknown kind", `"kind":"slots"`, `"kind":"tokens"`, "unknown kind"},
		{"slots without their kind", `"kind":"slots",`, ``, "not of that kind"},
		{"another spelling", `"slotNanos"`, `"SlotNanos"`, "no spelling"},
		{"a key twice", `"more":"0"`, `"more":"0","more":"0"`, "twice"},
		{"a key that is unknown", `"more":"0"`, `"maximum":"0","more":"0"`, "canonical"},
		{"keys in another order", `"more":"0","moreNanos":"0"`, `"moreNanos":"0","more":"0"`, "canonical"},
		{"a leading zero", `"id":"1"`, `"id":"01"`, "canonical"},
		{"an id that is no string", `"id":"1"`, `"id":1`, "id"},
		{"a space", `"id":"1"`, `"id": "1"`, "canonical"},
		{"an id over 64 bits", `"id":"1"`, `"id":"18446744073709551616"`, "id"},
		{"id 0", `"id":"1"`, `"id":"0"`, "without an id"},
		{"an id twice", `"id":"2"`, `"id":"1"`, "stands twice"},
		{"an outcome that is none", `"outcome":"done"`, `"outcome":"paid"`, "ended"},
		{"a failed request that is billed", `"outcome":"done"`, `"outcome":"failed"`, "failed, and is billed"},
		{"an end before its beginning", `"to":"2000000000"`, `"to":"900000000"`, "ran from"},
		{"a nanosecond too many", `"nanos":"1000000000","outcome"`, `"nanos":"1000000001","outcome"`, "1 too many"},
		{"a sum that does not add up", `"slotNanos":"1750000000"`, `"slotNanos":"1750000001"`, "1 too many"},
		{"a rest that is not left", `"rest":2`, `"rest":1`, "parts"},
		{"another root", `"root":"0x`, `"root":"0x00`, "root"},
		{"no slots", `"slots":3`, `"slots":0`, "can be shared"},
		{"too many slots", `"slots":3`, `"slots":1025`, "can be shared"},
		{"more at once than slots", `"slots":3`, `"slots":2`, "at once"},
		{"more GPUs than devices", `"gpus":2`, `"gpus":3`, "3 GPUs, and 2 devices"},
		{"a null", `"requests":[`, `"more":null,"requests":[`, ""},
	} {
		bad := strings.Replace(good, c[1], c[2], 1)
		if c[0] == "another root" {
			at := strings.Index(good, `"slots":{`)
			bad = good[:at] + strings.Replace(good[at:], good[at+strings.Index(good[at:], `"root":"0x`)+10:][:2], "00", 1)
		}
		all = append(all, refused{c[0], bad, c[3]})
	}
	return all
}

// TestVectors: the encoding is what testdata says, to the byte, and what it says is refused is.
func TestVectors(t *testing.T) {
	want := vectors{Accepted: accepted(t)}
	want.Refused = refusals(want.Accepted[0].Evidence)
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(want); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(vectorFile, text.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, text.Bytes()) {
		t.Error("evidence is encoded otherwise than in " + vectorFile)
	}
	var read vectors
	if err := json.Unmarshal(have, &read); err != nil {
		t.Fatal(err)
	}
	for _, v := range read.Accepted {
		e, err := parse([]byte(v.Evidence))
		if err == nil {
			err = e.Validate()
		}
		if err != nil || string(e.Encode()) != v.Evidence || e.Hash() != v.Hash || crypto.Keccak256Hash([]byte(v.Evidence)) != v.Hash || v.Record.EvidenceHash != v.Hash {
			t.Errorf("%s: %v", v.Name, err)
		}
		var spaced bytes.Buffer // a bundle may be indented: the same evidence
		if err := json.Indent(&spaced, []byte(v.Evidence), "", "  "); err != nil {
			t.Fatal(err)
		}
		var same metering.Evidence
		if err := json.Unmarshal(spaced.Bytes(), &same); err != nil || same.Hash() != v.Hash {
			t.Errorf("%s, indented: %v", v.Name, err)
		}
	}
	for _, v := range read.Refused {
		if v.Evidence == read.Accepted[0].Evidence {
			t.Errorf("%s: the case changes nothing", v.Name)
		}
		e, err := parse([]byte(v.Evidence))
		if err == nil {
			err = e.Validate()
		}
		if err == nil || !strings.Contains(err.Error(), v.Says) {
			t.Errorf("%s: got %v, want %q", v.Name, err, v.Says)
		}
	}
}

// parse reads evidence of a known kind as it was hashed: in its canonical form, byte for byte.
func parse(b []byte) (metering.Evidence, error) {
	var e metering.Evidence
	if err := json.Unmarshal(b, &e); err != nil {
		return e, err
	}
	if e.Kind != "" && e.Kind != metering.KindSlots {
		return e, e.Validate()
	}
	if !bytes.Equal(e.Encode(), b) {
		return e, errors.New("evidence is not in canonical form")
	}
	return e, nil
}

// FuzzEvidence: what parses is written again to the byte, has one hash, and can be looked at by everybody without a panic.
func FuzzEvidence(f *testing.F) {
	text, err := os.ReadFile(vectorFile)
	if err != nil {
		f.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(text, &v); err != nil {
		f.Fatal(err)
	}
	for _, a := range v.Accepted {
		f.Add([]byte(a.Evidence))
	}
	for _, r := range v.Refused {
		f.Add([]byte(r.Evidence))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parse(b)
		if err != nil {
			return
		}
		if !bytes.Equal(e.Encode(), b) {
			t.Fatalf("%s came back as %s", b, e.Encode())
		}
		if e.Validate() != nil || e.Kind != metering.KindSlots {
			return
		}
		var nanos int64
		for _, r := range e.Slots.Requests {
			nanos += r.Nanos
		}
		if nanos+e.Slots.MoreNanos != e.Slots.SlotNanos {
			t.Fatalf("%s adds up to %d", b, nanos)
		}
		if most, _ := metering.AtOnce(e.Slots.Requests); most > int(e.Slots.Slots) {
			t.Fatalf("%s has %d at once", b, most)
		}
	})
}
