package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering/trace"
)

func TestRecordSimulated(t *testing.T) {
	o := tracing{gpu: "sim", span: 300 * time.Millisecond, tick: 20 * time.Millisecond, note: "a test", out: filepath.Join(t.TempDir(), "t.jsonl")}
	var out bytes.Buffer
	if err := o.run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(o.out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tr, err := trace.Parse(f)
	if err != nil || !tr.Simulated || tr.Made != "a test" || len(tr.Readings) < 3 {
		t.Errorf("%+v, %v", tr, err)
	}
	if !strings.HasPrefix(out.String(), "Simulated GPU: ") {
		t.Errorf("said %q", out.String())
	}
}

func TestRecordSaysWhatIsMissing(t *testing.T) {
	out := filepath.Join(t.TempDir(), "t.jsonl")
	for want, o := range map[string]tracing{
		"--note are required": {gpu: "sim", out: out},
		"not nvml, sim":       {gpu: "cuda", out: out, note: "x"},
	} {
		if err := o.run(t.Context(), new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}
