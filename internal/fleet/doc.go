// Package fleet runs the example programs for tests: gateways and nodes as
// processes that are killed, stopped and started again, the links between them,
// and renters that believe what is acknowledged and nothing else.
//
// Its own test runs several gateways over one PostgreSQL as an operator would, and
// kills them while renters pay. Package nemesis does worse to them.
package fleet
