package redact

import (
	"strings"
	"testing"
)

// TestNoSecretIsShown: of an address nothing is shown but a scheme and a host, whatever stands where; a path of a file and a
// list without secrets are shown as they are.
func TestNoSecretIsShown(t *testing.T) {
	for _, address := range []string{
		"https://host/s3cret", "https://host?key=s3cret", "https://host/#s3cret", "https://u:s3cret@host", "https://s3cret@host/", "https://s3cret/x@host/",
		"postgres://u:s3cret@host:5432/db", "postgres://u:s3cret@a:1,b:2/db", "postgres://u:1/s3cret@host/db", "postgres://u:1?s3cret@host/db",
		"postgres://u:1#s3cret@host/db", "postgres://u@/db?password=s3cret", "postgresql+psycopg://u:s3cret@host/db", "u:s3cret@host",
		"host/s3cret", "host=h password=s3cret", "https://u:s3cret@%zz", "https:///s3cret", "//host/s3cret", "https://u:p@s3cret@host:x/",
	} {
		for name, shown := range map[string]string{"URL": URL(address), "list": List("http://a," + address)} {
			if strings.Contains(shown, "s3cret") {
				t.Errorf("%s of %s shows %s", name, address, shown)
			}
		}
		if shown := Database(address); strings.Contains(shown, "s3cret") && (strings.Contains(address, "://") || strings.Contains(address, "password=")) {
			t.Errorf("of the database %s is shown %s", address, shown)
		}
	}
	for address, want := range map[string]string{
		"https://u:p@host:8/x?y": "https://host:8", "localhost:8545": "localhost:8545", "": "", "postgres://u:p@h/db": "postgres://h",
	} {
		if shown := URL(address); shown != want {
			t.Errorf("of %s is shown %s, want %s", address, shown, want)
		}
	}
	for _, path := range []string{"gpupay.db", "/var/lib/a b/gpupay=1@x.db", `C:\gpupay.db`} {
		if shown := Database(path); shown != path {
			t.Errorf("of %s is shown %s", path, shown)
		}
	}
	if shown := List("nvml"); shown != "nvml" {
		t.Errorf("of nvml is shown %s", shown)
	}
}
