package settle_test

import (
	"testing"

	"github.com/gpupay/gpupay/internal/tilltest"
)

const poll = tilltest.Poll

// A till is the rig, and what only these tests do with it.
type till struct{ *tilltest.Till }

func newTill(t *testing.T) *till { return &till{tilltest.New(t)} }

var is = tilltest.Is
