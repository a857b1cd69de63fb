package provider

import (
	"strings"
	"testing"
	"time"

	"github.com/gpupay/gpupay/metering"
)

// TestCreditIsWholeSeconds: the offer says the credit in whole seconds and its
// times in milliseconds, so that a provider holds its renters to exactly what it
// published. A credit of 300 ms would be published as none.
func TestCreditIsWholeSeconds(t *testing.T) {
	good := payConfig(t, nil, "http://127.0.0.1", "0x1111111111111111111111111111111111111111", "0x2222222222222222222222222222222222222222", "x.db")
	good.Key, good.Metering.Tick, good.Metering.RecordEvery = strangerKey, time.Millisecond, metering.MinRecordEvery
	for credit, taken := range map[time.Duration]bool{
		0: true, time.Second: true, time.Minute: true, -time.Second: false, time.Nanosecond: false, 300 * time.Millisecond: false, time.Second - 1: false,
		time.Second + 1: false, 1500 * time.Millisecond: false,
	} {
		c := good
		c.Terms.Credit = credit
		err := c.withDefaults().check()
		if taken && err != nil || !taken && (err == nil || !strings.Contains(err.Error(), "Credit")) {
			t.Errorf("a credit of %s: %v", credit, err)
		}
	}
	for _, set := range []func(*Config){
		func(c *Config) { c.Metering.Tick = 1500 * time.Microsecond },
		func(c *Config) { c.Metering.MaxGap = time.Second + 1 },
		func(c *Config) { c.Metering.RecordEvery = time.Second + time.Microsecond },
		func(c *Config) { c.Metering.MaxGap = -time.Second },
		func(c *Config) { c.Metering.RecordEvery = metering.MinRecordEvery - time.Millisecond },
	} {
		c := good
		if set(&c); c.withDefaults().check() == nil {
			t.Errorf("taken: Tick %s, MaxGap %s, RecordEvery %s, which the offer would say otherwise, or which renters refuse", c.Metering.Tick, c.Metering.MaxGap, c.Metering.RecordEvery)
		}
	}
	for window, taken := range map[time.Duration]bool{metering.MinRecordEvery: true, metering.MinRecordEvery - 1: false} {
		c := good.withDefaults()
		if err := (X402{Window: window}).withDefaults(c.Settlement, 0).check(c); taken != (err == nil) {
			t.Errorf("a window of %s: %v", window, err)
		}
	}
}

// TestTimesBelowZero: a time that nothing can wait for is refused in one line that names its field.
func TestTimesBelowZero(t *testing.T) {
	good := payConfig(t, nil, "http://127.0.0.1", "0x1111111111111111111111111111111111111111", "0x2222222222222222222222222222222222222222", "x.db")
	good.Key = strangerKey
	for field, of := range map[string]func(*Config) *time.Duration{
		"Terms.SuspendTimeout": func(c *Config) *time.Duration { return &c.Terms.SuspendTimeout },
		"Terms.OfferTTL":       func(c *Config) *time.Duration { return &c.Terms.OfferTTL },
		"Deposits.Timeout":     func(c *Config) *time.Duration { return &c.Deposits.Timeout },
		"Commands.Timeout":     func(c *Config) *time.Duration { return &c.Commands.Timeout },
		"Commands.AliveEvery":  func(c *Config) *time.Duration { return &c.Commands.AliveEvery },
		"Chain.Poll":           func(c *Config) *time.Duration { return &c.Chain.Poll },
		"Chain.MinGrace":       func(c *Config) *time.Duration { return &c.Chain.MinGrace },
		"Chain.ClockTolerance": func(c *Config) *time.Duration { return &c.Chain.ClockTolerance },
		"Watchtowers.Every":    func(c *Config) *time.Duration { return &c.Watchtowers.Every },
	} {
		c := good
		*of(&c) = -time.Second
		if err := c.withDefaults().check(); err == nil || !strings.Contains(err.Error(), field+" (-1s) must not be negative") {
			t.Errorf("%s below zero: %v", field, err)
		}
	}
}
