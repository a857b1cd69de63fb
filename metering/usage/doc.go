// Package usage counts what a payee bills: a [Meter] turns readings of a lease's
// devices into integer nanoseconds, and a [Recorder] states them in signed,
// numbered, hash-chained records. It reads no clock and calls no device.
package usage
