// Package sim compares policies that choose endpoints, on servers that are simulated: slots, prefill and decode, the load of others,
// failures, outages, 429s, false bills.
//
// A [World] is servers and what befalls them, drawn from a seed by [Draw] or written by hand. Requests come by a random process
// ([Process]) or from a public trace ([ReadTrace]). [Run] serves them as a policy says and counts what they cost. All policies
// meet the same world: what happens to a request at a server does not depend on who sent it there, but on how many it has there.
//
// An answer costs what is paid for it, what the time from its arrival to its last byte is worth, c0 for each attempt that failed and for
// each bill that was refused, and ten times c0 if no attempt brought it. That is J as it came about, where package route estimates it. [Oracle] knows
// the truth of the moment, and takes the least expected J; [Clairvoyant] knows the dice, too.
package sim
