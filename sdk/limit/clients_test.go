package limit

import (
	"strconv"
	"testing"
)

// TestClientsAreForgottenByAge: no more are kept than may be, and whoever comes again is not forgotten for those who do not.
func TestClientsAreForgottenByAge(t *testing.T) {
	made := 0
	c := NewClients[int](10)
	fresh := func() int { made++; return made }
	regular := c.Get("regular", fresh)
	for i := range 1000 {
		c.Get(strconv.Itoa(i), fresh)
		if i%5 == 0 && c.Get("regular", fresh) != regular {
			t.Fatalf("after %d others one that stayed was forgotten", i)
		}
	}
	if c.Len() != 10 || made != 1001 {
		t.Errorf("%d are kept of %d made", c.Len(), made)
	}
}
