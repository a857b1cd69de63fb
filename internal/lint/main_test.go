package main

import (
	"os/exec"
	"regexp"
	"slices"
	"testing"
)

// TestVetIsWhole: what go vet asks of its own accord is asked here, in the version of Go that tests this.
func TestVetIsWhole(t *testing.T) {
	help, err := exec.CommandContext(t.Context(), "go", "tool", "vet", "help").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, help)
	}
	var have, want []string
	for _, a := range vet {
		have = append(have, a.Name)
	}
	for _, line := range regexp.MustCompile(`(?m)^    (\w+) +\S`).FindAllSubmatch(help, -1) {
		want = append(want, string(line[1]))
	}
	slices.Sort(have)
	slices.Sort(want)
	if len(want) == 0 || !slices.Equal(have, want) {
		t.Errorf("it asks %v, and go vet %v", have, want)
	}
}
