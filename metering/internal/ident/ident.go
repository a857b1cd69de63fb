// Package ident says what names and tells apart the devices of a lease: their
// texts, as every JSON writer encodes them alike, and their memory.
package ident

import (
	"errors"
	"fmt"
	"strings"
)

// UUIDs refuses a list of devices that is empty, or has one that is no UUID or
// stands in it twice: it would be billed twice for the same second.
func UUIDs(devices []string) error {
	if len(devices) == 0 {
		return errors.New("a meter needs at least one")
	}
	seen := make(map[string]bool)
	for _, uuid := range devices {
		if uuid == "" || uuid != Printable(uuid) {
			return fmt.Errorf("%q is no UUID", uuid)
		}
		if seen[uuid] {
			return fmt.Errorf("%s is named twice in one lease", uuid)
		}
		seen[uuid] = true
	}
	return nil
}

// Printable keeps ASCII of at most 128 bytes: what two JSON writers escape alike.
func Printable(s string) string {
	if len(s) > 128 {
		s = s[:128]
	}
	if isPrintable(s) {
		return s
	}
	return strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return '?'
		}
		return c
	}, s)
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Alike reports whether two amounts of memory differ by no more than what drivers
// keep for themselves: a sixteenth.
func Alike(a, b uint64) bool { return max(a, b)-min(a, b) <= max(a, b)/16 }
