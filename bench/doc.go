// Package bench measures gpupay beside what others do, in one run on one machine, and writes docs/performance.md.
//
// A Section is one question and a package of its own (see bench/received). A section that takes times gives its
// contenders to Interleave: each round lets every contender do a fixed amount of work, one after the other, in an order
// that turns by one a round, so that what else the machine does falls on all of them; what counts is the ratio of two
// contenders within a round, and its median over the rounds.
//
// Run it with ./bench.sh. Its test runs every section with the least work and looks at the page, never at a clock.
package bench
