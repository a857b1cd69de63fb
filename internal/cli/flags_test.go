package cli

import (
	"net/http"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
)

// FuzzAddress: what is taken for an address on a command line is that one and no other.
func FuzzAddress(f *testing.F) {
	for _, text := range []string{"", "0x52908400098527886E0F7030069857D2E4169EE7", "0X52908400098527886E0F7030069857D2E4169EE7",
		"52908400098527886E0F7030069857D2E4169EE7", "0x52908400098527886E0F7030069857D2E4169E", "0x0000000000000000000000000000000000000000"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var a Address
		if a.Set(text) != nil {
			return
		}
		if text == "" || a.Address == (common.Address{}) {
			if a.String() != "" || strings.Trim(text, "0xX") != "" {
				t.Fatalf("%q is taken for none", text)
			}
			return
		}
		var again Address
		if err := again.Set(a.String()); err != nil || again != a || !strings.EqualFold(a.String(), text) {
			t.Fatalf("%q is %s, which is %s, %v", text, &a, &again, err)
		}
	})
}

// FuzzSource: however many simulated GPUs somebody wants, there are that many, or none and an error.
func FuzzSource(f *testing.F) {
	for _, count := range []string{"", "1", "8", "0", "-1", "1025", "+3", "1e3", "99999999999999999999"} {
		f.Add(count)
	}
	f.Fuzz(func(t *testing.T, count string) {
		source, err := Source("sim:" + count)
		if err != nil {
			return
		}
		defer source.Close()
		devices, err := source.Devices(t.Context())
		if err != nil || len(devices) < 1 || len(devices) > 1024 {
			t.Fatalf("sim:%s has %d GPUs, %v", count, len(devices), err)
		}
	})
}

// A client is who the named header says, and without one the server's own default.
func TestClientIP(t *testing.T) {
	parse := func(args ...string) *Flags {
		t.Helper()
		f := NewFlags("test", "", "info")
		f.ClientHeader()
		if _, err := f.Load(args); err != nil {
			t.Fatal(err)
		}
		return f
	}
	if parse().ClientIP() != nil {
		t.Error("a header is believed that nobody named")
	}
	r := &http.Request{RemoteAddr: "192.0.2.1:1", Header: http.Header{"X-Real-Ip": {"198.51.100.1"}, "X-Forwarded-For": {"203.0.113.1"}}}
	if got := parse("--client-header", "x-real-ip").ClientIP()(r); got != "198.51.100.1" {
		t.Errorf("the client is %q", got)
	}
}
