package provider

import (
	"os"
	"testing"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
)

// TestRestoreWithANewMeteringKey: after a break-in a server's database is restored and the metering key changed. The file that knows who
// has the GPU is named by the old key where Records.HighWater does not say otherwise, and is read with the new one, too.
func TestRestoreWithANewMeteringKey(t *testing.T) {
	state := t.TempDir()
	for name, value := range map[string]string{"STATE_DIRECTORY": "", "XDG_STATE_HOME": state} {
		was, had := os.LookupEnv(name)
		os.Setenv(name, value)
		t.Cleanup(func() {
			if os.Unsetenv(name); had {
				os.Setenv(name, was)
			}
		})
	}
	address := pgtest.Database(t)
	over, calls, _ := handingOver(t, &address)
	var key *channel.Key
	change := func(c *Config) {
		over(c)
		c.Records.HighWater = ""
		if key != nil {
			c.Metering.Key = key
		}
	}
	r := newRig(t, over)
	r.shut()
	change(&r.config)
	r.start()
	first := r.opensWithout(&address, change)
	key = r.fund(t, 1)
	change(&r.config)
	r.start()
	second := r.nextRenter(2)
	first.takenBackBefore(second, calls())
}
