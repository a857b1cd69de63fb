package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

const printed = `goos: linux
BenchmarkAccept/inflight=8/payee=ours/channels=1-2   	 100	 2511 ns/op	 0 us-cpu/voucher	 398.2 vouchers/s
BenchmarkAccept/inflight=8/payee=ours/channels=16-2  	 100	 2511 ns/op	 4 us-cpu/voucher	 500 vouchers/s
BenchmarkAccept/inflight=8/payee=ours/channels=16-2  	 100	 2511 ns/op	 4 us-cpu/voucher	 600 vouchers/s
BenchmarkAccept/inflight=1/payee=ours/channels=1-2   	 100	 2511 ns/op	 4 us-cpu/voucher	 9 vouchers/s
BenchmarkLeases/stream=none/leases=1000	1	56.1 MiB-resident
PASS
`

// TestPlot: the rounds of what matches are read, what a logarithmic axis has no place for is left out, and something is drawn.
func TestPlot(t *testing.T) {
	w := want{match: "Accept/inflight=8", x: "channels", line: "payee", figure: "vouchers/s"}
	got, err := w.read(strings.NewReader(printed))
	if want := (lines{"ours": {1: {398.2}, 16: {500, 600}}}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	for _, w := range []want{w, {match: "Leases", x: "leases", line: "stream", figure: "MiB-resident"}} {
		path := filepath.Join(t.TempDir(), "plot.svg")
		all, err := w.read(strings.NewReader(printed))
		if err != nil {
			t.Fatal(err)
		}
		if err := w.draw(all, path); err != nil {
			t.Error(err)
		}
		if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), "</svg>") {
			t.Errorf("%.100s, %v", text, err)
		}
	}
	w.figure = "us-cpu/voucher"
	if got, err := w.read(strings.NewReader(printed)); err != nil || len(got["ours"][1]) != 0 || len(got["ours"][16]) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	w.figure = "horses"
	if got, err := w.read(strings.NewReader(printed)); err == nil {
		t.Errorf("no error for a figure that nobody printed: %v", got)
	}
}
