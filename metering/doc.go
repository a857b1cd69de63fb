// Package metering says what GPU time is and how both sides write it down: the
// readings of a device, the evidence that time is counted from, the record that
// the payee signs, and the price.
//
// One GPU-second is one second of CLOCK_MONOTONIC during which a named device
// (a whole GPU, or a MIG slice) was exclusively allocated to one lease and was
// observed healthy at both ends of the interval. Allocated time is billed;
// utilization is evidence.
//
// A [Source] gives readings (NVML, a recorded trace, a simulated GPU). On the
// payee's side package sampling reads every device of a lease once a tick and
// feeds a meter of package usage, which counts integer nanoseconds, never bills
// an interval it did not see both ends of, and is cut into signed, numbered,
// hash-chained records. On the payer's, package verify refuses every record that
// its own clock, the offer's price or the chain of records does not allow.
// Neither side imports the other, and this package neither.
//
// What it promises: a meter never bills more than the monotonic time that
// passed, once for each device, and every doubt is decided for the payer. What
// it cannot promise: a provider controls its own host, so a reading is the
// provider's word. A signature makes a lie attributable, not impossible; the
// payer's clock bounds it from above.
package metering
