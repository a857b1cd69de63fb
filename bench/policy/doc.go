// Package policy says what settlement policies cost a provider over a year, and what they leave at risk. It drives the
// decision that the Settler takes, settle.Policy.Due, with leases, vouchers and fees that are drawn from documented
// distributions; everything else about it is arithmetic.
//
// Leases. A provider has 64 GPUs. Renters come by a Poisson process whose rate follows the hour of the day (twice as many
// in the afternoon as at night) and the day of the week (a third fewer at weekends); one that finds no GPU goes away. Most
// leases are of renters who have a channel already: one of 150, by a Zipf law, since few renters rent most. A lease is of
// 1, 2, 4 or 8 GPUs (60, 20, 12 and 8 of a hundred); its length is log-normal with a median of 2 hours (sigma 1.3, so that
// a mean is near 5 hours and one in a hundred takes 41), at least 2 minutes and at most two weeks; its price per GPU-hour
// is log-normal around 2.20 dollars (sigma 0.35). One lease in fifty ends with its payer asking the contract for the rest:
// that channel is closing and cannot wait. Money comes in evenly, as vouchers every few seconds do.
//
// Fees. What a unit of gas costs is a median, times a daily wave, times the exponential of a mean-reverting walk (half-life
// six hours), times spikes that come by a Poisson process, are Pareto-distributed (alpha 1.2, at most 100 times) and halve
// every hour. A coin is 3,000 dollars all year. See Regimes for the figures.
//
// At risk is what was vouchered and not settled, and the credit that a lease may have used without a voucher.
package policy
