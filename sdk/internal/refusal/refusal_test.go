package refusal

import "testing"

// What nodes say, as they say it: go-ethereum, reth, Besu, anvil.
func TestWordsOfNodes(t *testing.T) {
	for text, want := range map[string]Answer{
		"already known": Taken, "nonce too low: next nonce 5, tx nonce 4": Taken, "replacement transaction underpriced": Taken,
		"insufficient funds for gas * price + value: balance 1, tx cost 2, overshot 1":          Unfunded,
		"transaction underpriced: gas tip cap 1, minimum needed 25000000000":                    TooLow,
		"max fee per gas less than block base fee: address 0x1, maxFeePerGas: 1, baseFee: 7":    TooLow,
		"tx fee (1.20 ether) exceeds the configured cap (1.00 ether)":                           TooDear,
		"tx fee (1200000000000000000 wei) exceeds the configured cap (1000000000000000000 wei)": TooDear,
		"Transaction fee cap exceeded":                                                          TooDear,
		"oversized data: transaction size 144310, limit 131072":                                 TooLarge,
		"exceeds block gas limit":                                      TooLarge,
		"transaction gas limit too high (cap: 16777216, tx: 20000000)": TooLarge,
		"rate limit exceeded":                                          Unheard, "internal error": Unheard, "": Unheard, "nonce too high": Unheard,
	} {
		if got, advice := Of(text); got != want || (advice == "") != (want == Taken) {
			t.Errorf("%q is %q, and do %q", text, got, advice)
		}
	}
}

// Of several endpoints one that has it, or may have it, counts before those that refuse it, and of refusals the one that no higher
// fee helps against.
func TestWordsOfSeveralNodes(t *testing.T) {
	const dear, large, low, known, odd = "exceeds the configured cap", "oversized data", "transaction underpriced", "already known", "odd"
	for _, c := range []struct {
		texts []string
		want  Answer
	}{
		{nil, Unheard}, {[]string{odd}, Unheard}, {[]string{dear}, TooDear}, {[]string{low, dear}, TooDear}, {[]string{dear, large, low}, TooLarge},
		{[]string{dear, odd}, Unheard}, {[]string{odd, dear}, Unheard}, {[]string{odd, known, dear}, Taken}, {[]string{dear, known}, Taken},
	} {
		if got, _ := All(c.texts); got != c.want {
			t.Errorf("%q are %q", c.texts, got)
		}
	}
	for answer, want := range map[Answer][2]bool{Unheard: {}, Taken: {}, TooLow: {true, false}, Unfunded: {true, true}, TooDear: {true, true}, TooLarge: {true, true}} {
		if got := [2]bool{answer.Refused(), answer.Never()}; got != want {
			t.Errorf("%q is %v", answer, got)
		}
	}
}
