// Package metering turns readings of GPUs into billable time, and billable
// time into usage records that the payee signs and the payer can check.
//
// One GPU-second is one second of CLOCK_MONOTONIC during which a named device
// (a whole GPU, or a MIG slice) was exclusively allocated to one lease and was
// observed healthy at both ends of the interval. Allocated time is billed;
// utilization is evidence.
//
// A [Source] gives readings (NVML, a recorded trace, a simulated GPU). A
// [Sampler] reads every device of a lease once a tick and feeds a [Meter],
// which counts integer nanoseconds and never bills an interval it did not see
// both ends of. A [Recorder] cuts the meter into signed, numbered, hash-chained
// records; a [Checker] is the payer's side and refuses every record that its
// own clock, the offer's price or the chain of records does not allow.
//
// What it promises: a meter never bills more than the monotonic time that
// passed, once for each device, and every doubt is decided for the payer. What
// it cannot promise: a provider controls its own host, so a reading is the
// provider's word. A signature makes a lie attributable, not impossible; the
// payer's clock bounds it from above.
package metering
