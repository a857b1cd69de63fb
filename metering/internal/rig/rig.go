// Package rig is what tests of metering share: a GPU and its readings, a key, a
// lease, and a meter that states them in records.
package rig

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/crypto"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/internal/eip712"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
)

// GPU and Second are the devices.
const (
	GPU    = "GPU-00000000-0000-0000-0000-00000000000a"
	Second = "GPU-00000000-0000-0000-0000-00000000000b"
)

// At is a healthy reading of the device, s seconds after the host's boot.
func At(s float64, change ...func(*metering.Reading)) metering.Reading {
	ns := int64(s * 1e9)
	r := metering.Reading{
		At:         metering.Instant{Boot: ns, Mono: ns, Wall: 1_767_225_600e9 + ns},
		BootID:     "boot",
		Device:     GPU,
		Driver:     "570.86",
		Energy:     uint64(ns / 1e6),
		Generation: 1,
		Has:        metering.HasEnergy | metering.HasUtilization | metering.HasThrottle,
		Health:     metering.Healthy,
		Seen:       GPU,
	}
	for _, f := range change {
		f(&r)
	}
	return r
}

// Of is a reading of another device.
func Of(uuid string, r metering.Reading) metering.Reading {
	r.Device = uuid
	if r.Seen != "" {
		r.Seen = uuid
	}
	return r
}

// Health makes a reading one of a device that is not well.
func Health(h metering.Health) func(*metering.Reading) {
	return func(r *metering.Reading) {
		r.Health = h
		if h != metering.Healthy {
			r.Seen, r.Driver, r.Generation, r.Has = "", "", 0, 0
		}
	}
}

// XID adds an error to a reading.
func XID(code uint64) func(*metering.Reading) {
	return func(r *metering.Reading) { r.XIDs = append(r.XIDs, metering.NewXID(code, r.At.Mono)) }
}

// NewMeter is a meter of GPU, or of other devices.
func NewMeter(t testing.TB, devices ...string) *usage.Meter {
	t.Helper()
	if len(devices) == 0 {
		devices = []string{GPU}
	}
	m, err := usage.NewMeter(usage.Config{Devices: devices})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// Observe gives a meter readings.
func Observe(t testing.TB, m *usage.Meter, readings ...metering.Reading) {
	t.Helper()
	for _, r := range readings {
		if _, err := m.Observe(r); err != nil {
			t.Fatal(err)
		}
	}
}

// ThroughJSON is a value after a restart.
func ThroughJSON[T any](t *testing.T, v T) (out T) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// Key signs records in tests.
type Key struct{ *ecdsa.PrivateKey }

// NewKey is the key of a seed.
func NewKey(t testing.TB, seed byte) Key {
	t.Helper()
	k, err := crypto.ToECDSA(common.LeftPadBytes([]byte{seed}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return Key{k}
}

// Address is the key's.
func (k Key) Address() common.Address { return crypto.PubkeyToAddress(k.PublicKey) }

// Sign signs as a metering key does.
func (k Key) Sign(_ context.Context, digest common.Hash) ([]byte, error) {
	return eip712.Sign(digest, k.PrivateKey)
}

// Price is an amount for a unit.
func Price(amount uint64, unit metering.Unit) metering.Price {
	return metering.Price{Amount: *uint256.NewInt(amount), Unit: unit}
}

// Lease is one of GPU, or of other devices.
func Lease(devices ...string) metering.Lease {
	if len(devices) == 0 {
		devices = []string{GPU}
	}
	return metering.Lease{
		ID:         common.HexToHash("0x11"),
		ChannelID:  common.HexToHash("0x22"),
		OfferHash:  common.HexToHash("0x33"),
		ChainID:    31337,
		Escrow:     common.HexToAddress("0x44"),
		Price:      Price(555, metering.Second),
		OwedBefore: *uint256.NewInt(1000),
		Devices:    devices,
	}
}

// Next is the record of what was metered since the last one.
func Next(t testing.TB, rec *usage.Recorder, m *usage.Meter, final bool) metering.SignedRecord {
	t.Helper()
	s, err := rec.Next(t.Context(), m.Cut(), final)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Signed is a record of a healthy second and of one in which the device was lost.
func Signed(t testing.TB) metering.SignedRecord {
	t.Helper()
	m := NewMeter(t)
	Observe(t, m, At(1), At(2, XID(13)), At(3, Health(metering.Lost)))
	rec, err := usage.NewRecorder(Lease(), NewKey(t, 1), nil)
	if err != nil {
		t.Fatal(err)
	}
	return Next(t, rec, m, false)
}
