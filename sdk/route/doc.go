// Package route chooses, for each request to an OpenAI-like API, the endpoint where its answer costs least in money, waiting
// included.
//
// What an answer is expected to cost at an endpoint is one figure, J, the sum of the parts in [Cost]:
//
//	first  = a + b*in + q*n               time to the first token, learned from own requests (normalized LMS)
//	wait   = first + (d + w*n)*out        d + w*n: time per token, learned likewise; n: own requests in flight there
//	pay    = wait*PerSlotSecond + in*PerInputToken + out*PerOutputToken
//	risk   = (1-s)/s * (v*(a+q*n+0.5s) + pay/2 + c0)     s = (9+ok)/(10+ok+bad), counts that decay with 30 s
//	J      = pay + v*wait + risk - affinity          v: what a second of waiting is worth
//	affinity = v*b*cached + PerSlotSecond*b*cached   where the session's last turn ran
//
// Endpoints that break a hard rule ([Rule]) or whose breaker is open are out. One in fifty requests explores, by a draw with
// the weights 1/J, so that to learn of an endpoint costs alike for all; the others draw with exp(-(J/Jmin-1)/0.1). Of many endpoints the 16 with the least J of a random 32 are weighed. Where
// every breaker is open the least bad is asked all the same: a [Router] refuses by hard rules alone, and says which.
//
// Times are the caller's own measurements. What an endpoint claims enters no estimate. Money is an integer of [Nano]; what is reserved is rounded
// up. A Router reads no clock and starts no goroutine: time and randomness are given to it, and the same calls make the same choices.
package route
