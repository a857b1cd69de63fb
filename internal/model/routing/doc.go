// Package routing holds the property test of sdk/route: whatever endpoints there are and however they behave, no choice breaks a hard
// rule. It is apart from the SDK for rapid alone.
package routing
