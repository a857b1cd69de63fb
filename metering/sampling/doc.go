// Package sampling reads the devices of a host on their ticks, for the meters of
// all of its leases: a [Scheduler] for many, a [Loop] for one.
package sampling
