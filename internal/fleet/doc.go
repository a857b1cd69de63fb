// Package fleet has no code of its own: its test runs several gateways over one
// PostgreSQL as an operator would, and kills them while renters pay.
package fleet
