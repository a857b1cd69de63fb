package nodekeys

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMeterKeyStaysWithItsNode: a node's key is made once, in a file for its owner alone, and what is no key is refused and left.
func TestMeterKeyStaysWithItsNode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "meter-key.pem")
	first, err := OpenMeterKey(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := OpenMeterKey(path)
	if err != nil || first.Address() != second.Address() {
		t.Errorf("%s, then %s (%v)", first.Address(), second.Address(), err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	for _, text := range []string{"", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "-----BEGIN GPUPAY METER KEY-----\nAAAA\n-----END GPUPAY METER KEY-----\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if key, err := OpenMeterKey(path); err == nil {
			t.Errorf("%q is key %s", text, key.Address())
		}
		if left, _ := os.ReadFile(path); string(left) != text {
			t.Errorf("%q was written over", text)
		}
	}
}
