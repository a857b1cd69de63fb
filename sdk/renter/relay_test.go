package renter_test

import (
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/tower"
)

// A watchtower relays, and so does who speaks to one.
var (
	_ renter.Relay = (*tower.Tower)(nil)
	_ renter.Relay = (*tower.Client)(nil)
)
