package main

import (
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common/hexutil"
	"github.com/ethereum/go-ethereum/crypto"

	"github.com/gpupay/gpupay/internal/chaintest"
	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/provider"
)

// TestPriceIsMeant: no GPUs are given away, and none are offered at a price in base
// units, unless somebody said so.
func TestPriceIsMeant(t *testing.T) {
	for _, c := range []struct {
		price, says string
		free        bool
	}{
		{"2.50", "", false}, {"0.000001", "", false}, {"1000000", "", false}, {"0", "", true}, {"0.00", "", true},
		{"0", "--free", false}, {"0.00", "--free", false}, {"2.50", "contradict", true}, {"-1", "-1", false}, {"-0", "-0", false},
		{"", "--price", false}, {"1e3", "1e3", false}, {"cheap", "cheap", false}, {"2500000", "base units", false},
		{"99999999999999999999999999", "more than", false},
	} {
		err := checkPrice(c.price, c.free)
		if (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("--price %q, --free %t: %v", c.price, c.free, err)
		}
		t.Setenv("GPUPAY_PRICE", "")
		args := []string{"--price=" + c.price}
		if c.free {
			args = append(args, "--free")
		}
		if _, err := parseServe(t, args); c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// TestMistakesNameFlags: what is wrong is called what the operator typed, or can type.
func TestServeMistakesNameFlags(t *testing.T) {
	t.Setenv("GPUPAY_KEY", strings.Repeat("1", 64))
	t.Setenv("GPUPAY_ESCROW", "")
	t.Setenv("GPUPAY_TOKEN", "")
	escrow, token := " --escrow 0x"+strings.Repeat("1", 40), " --token 0x"+strings.Repeat("2", 40)
	for _, row := range []struct{ args, says string }{
		{"", "--escrow ($GPUPAY_ESCROW) is empty"}, {"", "devchain.env"}, {escrow, "--token ($GPUPAY_TOKEN) is empty"},
		{escrow + token + " --db=", "--db ($GPUPAY_DB) is empty"}, {escrow + token + " --retention 1h", "--retention (1h0m0s)"},
		{escrow + token + " --retention 24h", "--archive ($GPUPAY_ARCHIVE)"}, {escrow + token + " --credit 100ms", "--credit (100ms)"},
		{"--credit 60", "60s"},
	} {
		o, err := parseServe(t, strings.Fields(row.args))
		if err == nil {
			o.config.Source = sim.New(1, sim.Options{})
			_, err = provider.New(t.Context(), o.config)
			err = o.flags.Named(err, serveFields)
		}
		if err == nil || !strings.Contains(err.Error(), row.says) {
			t.Errorf("%q: %v", row.args, err)
		}
	}
	o, err := parseServe(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	for field, name := range serveFields {
		if !o.flags.Has(name) {
			t.Errorf("%s: no flag is --%s", field, name)
		}
	}
}

// TestServesWhenItSaysSo: a provider that cannot open the operator's address does not say first that it rents out.
func TestServesWhenItSaysSo(t *testing.T) {
	c := chaintest.Anvil(t)
	t.Setenv("GPUPAY_KEY", hexutil.Encode(crypto.FromECDSA(c.Keys[0])))
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	said, err := printed(t, "serve --gpu sim --log-level error --rpc "+c.URL+" --escrow "+c.Escrow.Hex()+" --token "+c.Token.Hex()+
		" --db "+filepath.Join(t.TempDir(), "provider.db")+" --listen 127.0.0.1:0 --admin "+taken.Addr().String())
	if err == nil || !strings.Contains(err.Error(), "--admin") || said != "" {
		t.Errorf("%v, and it said %q", err, said)
	}
}

// TestServesWithItsCertificate: a provider that gets none for its domain says why, and not that it rents out.
func TestServesWithItsCertificate(t *testing.T) {
	c := chaintest.Anvil(t)
	t.Setenv("GPUPAY_KEY", hexutil.Encode(crypto.FromECDSA(c.Keys[0])))
	said, err := printed(t, "serve --gpu sim --log-level error --rpc "+c.URL+" --escrow "+c.Escrow.Hex()+" --token "+c.Token.Hex()+" --listen 127.0.0.1:0 --admin= --db "+
		filepath.Join(t.TempDir(), "provider.db")+" --domain gpu.example.org --acme-url https://127.0.0.1:1/directory --acme-dir "+t.TempDir())
	if err == nil || !strings.Contains(err.Error(), "--domain: no certificate for gpu.example.org") || said != "" {
		t.Errorf("%v, and it said %q", err, said)
	}
}

// TestPricesOfClasses: a price for each of several kinds makes a class of each, by a name that renters can ask for.
func TestPricesOfClasses(t *testing.T) {
	if all, price, err := classesOf("2.50"); len(all) != 0 || price != "2.50" || err != nil {
		t.Errorf("%v %s %v", all, price, err)
	}
	all, _, err := classesOf("H100=2.50, RTX 4090=0.40,MIG 1g.10gb=0.30")
	want := []provider.Class{{ID: "h100", Model: "H100", PricePerGPUHour: "2.50"}, {ID: "rtx-4090", Model: "RTX 4090", PricePerGPUHour: "0.40"},
		{ID: "mig-1g-10gb", Model: "MIG 1g.10gb", MIG: true, PricePerGPUHour: "0.30"}}
	if err != nil || !slices.Equal(all, want) {
		t.Errorf("%+v %v", all, err)
	}
	for _, text := range []string{"H100=2.50,1.20", "=2.50", "H100="} {
		if _, _, err := classesOf(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}
