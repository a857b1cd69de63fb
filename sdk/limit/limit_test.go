package limit

import "testing"

func TestClient(t *testing.T) {
	for _, row := range []struct{ address, want string }{
		{"203.0.113.9:4711", "203.0.113.9"},
		{"203.0.113.9", "203.0.113.9"},
		{"[::ffff:203.0.113.9]:80", "203.0.113.9"},
		{"[2001:db8:1:2:3:4:5:6]:80", "2001:db8:1:2::/64"},
		{"2001:db8:1:2::7", "2001:db8:1:2::/64"},
		{"[fe80::1%eth0]:80", "fe80::/64"},
		{"127.0.0.1:80", ""}, // a proxy of this host, or a program on it
		{"[::1]:80", ""},
		{"[::ffff:127.0.0.1]:80", ""},
		{"@", ""}, // a Unix socket
		{"", ""},
		{"example.org:80", ""},
	} {
		if got := Client(row.address); got != row.want {
			t.Errorf("%q is client %q, want %q", row.address, got, row.want)
		}
	}
}

// FuzzClient: whatever a proxy says, what is remembered of it is short.
func FuzzClient(f *testing.F) {
	f.Add("203.0.113.9:80")
	f.Add("[2001:db8::1%eth0]:80")
	f.Fuzz(func(t *testing.T, address string) {
		if name := Client(address); len(name) > len("ffff:ffff:ffff:ffff::/64") {
			t.Fatalf("%q is %q", address, name)
		}
	})
}
