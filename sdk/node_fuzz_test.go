package sdk

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/testclock"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/gpu"
	"github.com/gpupay/gpupay/sdk/internal/nodelink"
	"github.com/gpupay/gpupay/sdk/wire"
)

// FuzzNode gives a node whatever a gateway could send that it let in. It
// never fails by an error of its own.
func FuzzNode(f *testing.F) {
	key := fixedKey(f)
	n, err := NewNode(f.Context(), NodeConfig{Name: "n", Identity: testNode("n"), MeterKey: key, Database: filepath.Join(f.TempDir(), "spool.db"),
		Source: testclock.GPUs(1), Clock: testclock.Process(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { n.Close() })
	offer, err := wire.SignOffer(f.Context(), key, wire.Offer{Version: 1, ChainID: 1, Payee: wire.Address(key.Address()), Meter: wire.Address(key.Address()),
		Amount: wireAmount(1), Unit: "gpu_second", Credit: 1, Tick: 1000, MaxGap: 3000, RecordEvery: 5000})
	if err != nil {
		f.Fatal(err)
	}
	start, err := json.Marshal(nodelink.Start{LeaseID: common.Hash{1}, Offer: offer.Document, GPUs: 1, OwedBefore: wireAmount(0), Money: nodelink.MoneyOf(uint256.Int{}, uint256.Int{}),
		Terms: channel.Terms{ChainID: 1, Escrow: common.Address{1}, Payer: common.Address{2}, Payee: key.Address(), Token: common.Address{3}}})
	if err != nil {
		f.Fatal(err)
	}
	id := common.Hash{1}.Hex()
	bound := offer.Offer // of a lease that a gateway binds the node's key to
	bound.Version, bound.Meter = 2, wire.Address{}
	unnamed, err := wire.SignOffer(f.Context(), key, bound)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("/leases", start)
	f.Add("/leases", bytes.Replace(start, offer.Document, unnamed.Document, 1))
	f.Add("/leases/"+id+"/sync", []byte(`{"accepted":"1","deposit":"2","after":0}`))
	f.Add("/leases/"+id+"/sync", []byte(`{"accepted":"1","deposit":"2","after":18446744073709551615}`))
	f.Add("/leases/"+id+"/end", []byte(`{"reason":"x","closed":true}`))
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		req, err := http.NewRequest("POST", "http://n"+path, bytes.NewReader(body))
		if err != nil || !strings.HasPrefix(path, "/") || req.URL.Host != "n" {
			return
		}
		w := httptest.NewRecorder()
		n.mux.ServeHTTP(w, req)
		if w.Code == http.StatusInternalServerError {
			t.Fatalf("%s %q: %s", path, body, w.Body)
		}
		var l nodelink.Lease
		if w.Code == http.StatusOK && nodelink.Parse(w.Body.Bytes(), &l) != nil {
			t.Fatalf("its answer does not parse: %s", w.Body)
		}
	})
}

// fixedKey is the same in every process of a fuzzer.
func fixedKey(f *testing.F) *channel.Key {
	f.Helper()
	private, err := crypto.ToECDSA(crypto.Keccak256([]byte("node")))
	if err != nil {
		f.Fatal(err)
	}
	return channel.NewKey(private)
}

// FuzzNodeAnswer gives a gateway whatever a node could answer. Of what it takes, each record is signed by the offer's key and owes what
// its time costs.
func FuzzNodeAnswer(f *testing.F) {
	key := fixedKey(f)
	terms := metering.Lease{ID: common.Hash{1}, ChannelID: common.Hash{2}, OfferHash: common.Hash{3}, ChainID: 1, Escrow: common.Address{4},
		Price: metering.Price{Amount: *uint256.NewInt(1000), Unit: metering.Second}, Devices: []string{"SIM-GPU-0"}, Simulated: true}
	recorder, err := metering.NewRecorder(terms, key, nil)
	if err != nil {
		f.Fatal(err)
	}
	meter, err := metering.NewMeter(metering.Config{Devices: terms.Devices})
	if err != nil {
		f.Fatal(err)
	}
	rec, err := recorder.Next(f.Context(), meter.Cut(), false)
	if err != nil {
		f.Fatal(err)
	}
	good, err := json.Marshal(nodelink.Lease{LeaseID: terms.ID, State: wire.StateActive, Sequence: 1, Allocation: &gpu.Allocation{}, Records: []metering.SignedRecord{rec}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"meter":"0x0000000000000000000000000000000000000001","devices":[{"uuid":"x"}],"free":1,"leases":[]}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		var status nodelink.Status
		if nodelink.Parse(answer, &status) == nil {
			_ = wire.DevicesOf(status.Devices)
		}
		var l nodelink.Lease
		if nodelink.Parse(answer, &l) != nil {
			return
		}
		checker, err := metering.ResumeChecker(metering.CheckerConfig{Lease: terms, Key: key.Address(), Tolerance: time.Minute}, checkedTo(nil, terms, time.Now().UnixNano()))
		if err != nil {
			t.Fatal(err)
		}
		for _, got := range l.Records {
			if checker.Check(got) != nil {
				continue
			}
			if owed, err := terms.Owed(got.Nanos); err != nil || owed != got.Owed || got.Record != rec.Record {
				t.Fatalf("taken: %+v", got.Record)
			}
		}
	})
}
