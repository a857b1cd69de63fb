//go:build race

package eip712_test

const raceEnabled = true
