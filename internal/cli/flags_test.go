package cli

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
)

// FuzzAddress: what is taken for an address on a command line is that one and no other.
func FuzzAddress(f *testing.F) {
	for _, text := range []string{"", "0x52908400098527886E0F7030069857D2E4169EE7", "0X52908400098527886E0F7030069857D2E4169EE7",
		"52908400098527886E0F7030069857D2E4169EE7", "0x52908400098527886E0F7030069857D2E4169E", "0x0000000000000000000000000000000000000000"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		a, err := Address(text)
		if err != nil {
			return
		}
		if a == (common.Address{}) {
			if strings.Trim(text, "0xX") != "" {
				t.Fatalf("%q is taken for none", text)
			}
			return
		}
		if again, err := Address(a.Hex()); err != nil || again != a || !strings.EqualFold(a.Hex(), text) {
			t.Fatalf("%q is %s, which is %s, %v", text, a, again, err)
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

// TestMistypedSourceIsAnError: also for a program that goes on without GPUs where they cannot be opened.
func TestMistypedSourceIsAnError(t *testing.T) {
	for _, name := range []string{"", "nvlm", "NVML", "nvml ", "nvml:2", "auto:1", "none", "sim:", "sim:0", "sim:x", "sim:1:1", "smi:2"} {
		if source, err := SourceOrAway(name); err == nil || !strings.Contains(err.Error(), "--gpu") {
			t.Errorf("--gpu %q is %T, %v", name, source, err)
		}
	}
	source, err := SourceOrAway("nvml")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	_, away := source.(Away)
	if _, err := source.Devices(t.Context()); (err != nil) != away || away != (source.Name() == "this host") {
		t.Errorf("%T, %q: %v", source, source.Name(), err)
	}
}

// Proxies are trusted that were named, and no others.
func TestTrustedProxies(t *testing.T) {
	parse := func(args ...string) (proxies []string) {
		t.Helper()
		if err := try(t, func(f *Flags) { f.TrustedProxies(&proxies) }, args...); err != nil {
			t.Fatal(err)
		}
		return proxies
	}
	if got := parse(); len(got) != 0 {
		t.Errorf("trusted though nobody was named: %q", got)
	}
	if got := parse("--trusted-proxies", "127.0.0.1, 10.0.0.0/8"); !slices.Equal(got, []string{"127.0.0.1", "10.0.0.0/8"}) {
		t.Errorf("trusted are %q", got)
	}
}

// TestErrorsNameFlags: an error of a configuration says what the user typed, or can type, and is still the same error; what
// somebody wrote is left as it is.
func TestErrorsNameFlags(t *testing.T) {
	f := new(App).Flags("rent", "renter")
	f.Text(new(string), "max-price", "", "refuse more")
	f.Int(new(int), "gpus", 1, "how many")
	f.RPC(new(string), "")
	f.Address(new(common.Address), "token", "the token")
	fields := Fields{"Caps.PricePerGPUHour": "max-price", "GPUs": "gpus", "Token": "token", "RPC": "rpc"}
	for said, want := range map[string]string{
		"renter: Caps.PricePerGPUHour: invalid amount":             "renter: --max-price ($GPUPAY_MAX_PRICE): invalid amount",
		"too dear (Caps.PricePerGPUHour is 5)":                     "too dear (--max-price ($GPUPAY_MAX_PRICE) is 5)",
		"renter: GPUs, PayEvery and Prepay must not be negative":   "renter: --gpus, PayEvery and Prepay must not be negative",
		"renter: RPC is empty: give the URL of a JSON-RPC one":     "renter: --rpc ($GPUPAY_RPC) is empty: give the URL of a JSON-RPC one",
		"renter: Token is empty: give it":                          "renter: --token ($GPUPAY_TOKEN) is empty: give it (on a chain that devchain runs: `. ./devchain.env` says it)",
		"http://x: No Capacity: Token GPUs":                        "http://x: No Capacity: Token GPUs",
		`renter: GPUs: "Token \" GPUs Caps.PricePerGPUHour" is no`: `renter: --gpus: "Token \" GPUs Caps.PricePerGPUHour" is no`,
	} {
		err := errors.New(said)
		if got := f.Named(err, fields); got.Error() != want || !errors.Is(got, err) {
			t.Errorf("%q\nis   %q\nwant %q", said, got, want)
		}
	}
	if f.Named(nil, fields) != nil {
		t.Error("no error is one")
	}
}

// TestValuesOfAnotherShape: of a value that does not parse an error says which shape it has.
func TestValuesOfAnotherShape(t *testing.T) {
	for value, says := range map[string]string{"credit=60": "--credit \"60\" is not a time with its unit, such as 60s", "credit=": "60s", "gpus=x": "a whole number", "minutes=1,5": "a number"} {
		err := try(t, numbers, "--"+value)
		if err == nil || !strings.Contains(err.Error(), says) || Status(err) != StatusUsage {
			t.Errorf("--%s: %v", value, err)
		}
	}
}

func numbers(f *Flags) {
	f.Duration(new(time.Duration), "credit", time.Minute, "")
	f.Int(new(int), "gpus", 1, "")
	f.Float(new(float64), "minutes", "")
}

// try parses a command line of one subcommand, "test".
func try(t *testing.T, register func(*Flags), args ...string) error {
	t.Helper()
	app := new(App)
	f := app.Flags("test", "test")
	register(f)
	return app.Run(t.Context(), append([]string{"program", "test"}, args...), "program", "", "",
		f.Command("", "", func(context.Context, []string) error { return nil }))
}
