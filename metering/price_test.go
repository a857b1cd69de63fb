package metering_test

import (
	"encoding/json"
	"errors"
	"math/big"
	"testing"

	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/internal/rig"
)

func TestCharge(t *testing.T) {
	tests := []struct {
		price metering.Price
		nanos uint64
		want  uint64
	}{
		{rig.Price(0, metering.Second), 1e18, 0},
		{rig.Price(1, metering.Second), 999_999_999, 0},
		{rig.Price(1, metering.Second), 1_000_000_000, 1},
		{rig.Price(555, metering.Second), 60e9, 33300},
		{rig.Price(3, metering.Second), 333_333_334, 1},
		{rig.Price(100, metering.Minute), 59_999_999_999, 99},
		{rig.Price(100, metering.Minute), 60e9, 100},
		{rig.Price(2_000_000, metering.Hour), 3600e9, 2_000_000},
		{rig.Price(2_000_000, metering.Hour), 1e9, 555},
	}
	for _, tt := range tests {
		got, err := tt.price.Charge(tt.nanos)
		if err != nil || got.Uint64() != tt.want {
			t.Errorf("%d ns at %s per %s: %s, %v; want %d", tt.nanos, tt.price.Amount.Dec(), tt.price.Unit, got.Dec(), err, tt.want)
		}
	}
}

func TestChargeRefuses(t *testing.T) {
	most := *uint256.MustFromDecimal("79228162514264337593543950335") // 2^96-1
	over := *new(uint256.Int).AddUint64(&most, 1)
	for _, tt := range []struct {
		price metering.Price
		nanos uint64
	}{
		{metering.Price{Amount: over, Unit: metering.Hour}, 0},
		{metering.Price{Amount: most, Unit: metering.Second}, 2e9},
		{metering.Price{Amount: most, Unit: "gpu_day"}, 1},
		{metering.Price{Amount: most}, 1},
	} {
		if got, err := tt.price.Charge(tt.nanos); !errors.Is(err, metering.ErrPrice) {
			t.Errorf("%d ns at %s per %q: %s, %v", tt.nanos, tt.price.Amount.Dec(), tt.price.Unit, got.Dec(), err)
		}
	}
}

// FuzzCharge holds the charge against big integers, and charging twice against
// charging once: the cumulative total is floored once, so no split costs more.
func FuzzCharge(f *testing.F) {
	f.Add(uint64(555), uint64(60e9), uint64(1), byte(0))
	f.Add(^uint64(0), ^uint64(0), uint64(7), byte(2))
	f.Fuzz(func(t *testing.T, amount, nanos, part uint64, unit byte) {
		p := rig.Price(amount, []metering.Unit{metering.Second, metering.Minute, metering.Hour}[unit%3])
		got, err := p.Charge(nanos)
		want := new(big.Int).Mul(new(big.Int).SetUint64(amount), new(big.Int).SetUint64(nanos))
		want.Div(want, new(big.Int).SetUint64(p.Unit.Nanos()))
		if want.BitLen() > 96 {
			if !errors.Is(err, metering.ErrPrice) {
				t.Fatalf("%s is over 96 bits and was accepted: %v", want, err)
			}
			return
		}
		if err != nil || got.ToBig().Cmp(want) != 0 {
			t.Fatalf("%s, %v; want %s", got.Dec(), err, want)
		}
		part %= max(nanos, 1)
		a, _ := p.Charge(part)
		b, _ := p.Charge(nanos - part)
		if sum := new(uint256.Int).Add(&a, &b); sum.Gt(&got) {
			t.Fatalf("%d ns cost %s whole and %s in parts", nanos, got.Dec(), sum.Dec())
		}
		if a.Gt(&got) {
			t.Fatalf("%d ns cost more than %d ns", part, nanos)
		}
	})
}

func FuzzPriceJSON(f *testing.F) {
	for _, s := range []string{
		`{"amount":"555","unit":"gpu_second"}`, `{"amount":"0","unit":"gpu_hour"}`, `{"amount":"01","unit":"gpu_minute"}`,
		`{"amount":"-1","unit":"gpu_second"}`, `{"amount":"0x1","unit":"gpu_second"}`, `{"amount":"1.5","unit":"gpu_second"}`,
		`{"amount":"79228162514264337593543950336","unit":"gpu_second"}`, `{"amount":1,"unit":"gpu_second"}`, `{"amount":"1","unit":"second"}`, `{}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p, again metering.Price
		if json.Unmarshal(b, &p) != nil {
			return
		}
		if err := p.Validate(); err != nil {
			t.Fatalf("parsed a price that is none: %v", err)
		}
		out, err := json.Marshal(p)
		if err != nil || json.Unmarshal(out, &again) != nil || again != p {
			t.Fatalf("%s came back as %s", b, out)
		}
	})
}

func TestPriceJSONRefuses(t *testing.T) {
	for _, s := range []string{
		`{"amount":"01","unit":"gpu_minute"}`, `{"amount":"-1","unit":"gpu_second"}`, `{"amount":"0x1","unit":"gpu_second"}`,
		`{"amount":"1.5","unit":"gpu_second"}`, `{"amount":"79228162514264337593543950336","unit":"gpu_second"}`,
		`{"amount":1,"unit":"gpu_second"}`, `{"amount":"1","unit":"second"}`, `{"amount":"","unit":"gpu_second"}`, `{}`, `[]`,
	} {
		var p metering.Price
		if err := json.Unmarshal([]byte(s), &p); err == nil {
			t.Errorf("%s: accepted as %v", s, p)
		}
	}
}

func TestXIDClasses(t *testing.T) {
	for code, want := range map[uint64]struct {
		fault metering.Fault
		stops bool
	}{
		13: {metering.Workload, false}, 31: {metering.Workload, false}, 43: {metering.Workload, false}, 45: {metering.Workload, false},
		48: {metering.Hardware, false}, 62: {metering.Hardware, false}, 64: {metering.Hardware, false}, 74: {metering.Hardware, false},
		63: {metering.Hardware, false}, 94: {metering.Hardware, false},
		79: {metering.Hardware, true}, 95: {metering.Hardware, true}, 119: {metering.Hardware, true},
		1000: {metering.Unknown, false},
	} {
		if x := metering.NewXID(code, 0); x.Fault != want.fault || x.Stops() != want.stops {
			t.Errorf("XID %d: %s, stops %v", code, x.Fault, x.Stops())
		}
	}
}
