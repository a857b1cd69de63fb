// Package refusal reads what nodes say of a transaction that they do not take, and what tokens say of a payment. It knows the words, and nothing of what to send instead.
package refusal

import "strings"

// An Answer is what all endpoints that answered said of one version of a transaction, as it is kept on disk.
type Answer string

// Unheard says nothing of whether somebody has the version. Taken is for ever: who took it may have handed it on. By the others each
// endpoint said that it does not have it: TooDear is above what a node lets one transaction pay, TooLarge is more data or gas than one
// may have, Unfunded more than the account has, TooLow a fee below what the node wants.
const (
	Unheard  Answer = ""
	Taken    Answer = "taken"
	TooLow   Answer = "too low"
	Unfunded Answer = "unfunded"
	TooDear  Answer = "too dear"
	TooLarge Answer = "too large"
)

// Refused reports whether nobody has the version, as far as the endpoints say.
func (a Answer) Refused() bool { return a != Unheard && a != Taken }

// Never reports whether no higher fee can have the version taken.
func (a Answer) Never() bool { return a == TooDear || a == TooLarge || a == Unfunded }

const raised = "it is raised after a while, up to MaxFee"

// words are looked for in this order.
var words = []struct {
	words  string
	answer Answer
	advice string
}{
	{"already known", Taken, ""}, {"already imported", Taken, ""}, {"known transaction", Taken, ""}, {"alreadyexists", Taken, ""},
	{"nonce too low", Taken, ""}, {"replacement transaction underpriced", Taken, ""},
	{"insufficient funds", Unfunded, "send the sender native coin: it pays for gas and, on a rollup, for data"},
	{"oversized data", TooLarge, "it is more than a transaction may have: it is cancelled, and what it settles is sent in smaller ones"},
	{"underpriced", TooLow, "the node wants a higher fee: " + raised + "; use another endpoint if it asks more than the chain does"},
	{"less than block base fee", TooLow, "the chain's base fee is above what is offered: " + raised},
	{"exceeds the configured cap", TooDear, dear}, {"fee cap", TooDear, dear},
	{"tip", TooLow, "the node wants a higher tip: " + raised + "; use another endpoint if it asks more than the chain does"},
	{"gas limit", TooLarge, "the call takes more gas than the chain allows: it is cancelled, and what it settles is sent in smaller ones"},
}

const dear = "the node bounds what a transaction may pay (geth: --rpc.txfeecap): it is signed for less, or cancelled and split; raise the bound, or lower MaxFee"

// Of is what a node's words say of the version that it was handed, and what to do.
func Of(text string) (Answer, string) {
	text = strings.ToLower(text)
	for _, known := range words {
		if strings.Contains(text, known.words) {
			return known.answer, known.advice
		}
	}
	return Unheard, "ask who runs the endpoint, or use another one"
}

// All is what several endpoints' words come to: Taken if one has it, Unheard if one leaves that open, and otherwise what raising
// the fee helps least against.
func All(texts []string) (all Answer, advice string) {
	rank := map[Answer]int{TooLow: 1, Unfunded: 2, TooDear: 3, TooLarge: 4, Unheard: 5, Taken: 6}
	for _, text := range texts {
		if answer, do := Of(text); rank[answer] > rank[all] || all == Unheard && advice == "" {
			all, advice = answer, do
		}
	}
	return all, advice
}

// Token is what to do where a token refuses with these words.
func Token(reason string) string {
	reason = strings.ToLower(reason)
	for _, known := range []struct{ words, advice string }{
		{"blacklist", issuerBlocks}, {"blocklist", issuerBlocks}, {"denylist", issuerBlocks}, {"frozen", issuerBlocks}, {"sanction", issuerBlocks},
		{"paused", "its issuer has stopped it: wait until it goes on"},
		{"invalid signature", "a token that asks a payer's code (an account that is delegated by EIP-7702, or a contract) does not take the key's signature: " +
			"deposit by a transaction of the payer's own, or end the delegation"},
		{"authorization is used", "the deposit was sent before: look at the channel"},
		{"authorization is expired", "sign a new deposit"},
		{"not yet valid", "check the clock of the payer"},
		{"allowance", "approve the deposit first"},
		{"balance", "the payer has too little of it"},
		{"transferfromfailed", "the payer has too little of it or has not approved the deposit, or the issuer has stopped it or blocks an account"},
		{"transferfailed", "its issuer has stopped it, or blocks an account of this payment"},
		{"depositmismatch", "it takes a fee of transfers, which this escrow does not take"},
	} {
		if strings.Contains(reason, known.words) {
			return known.advice
		}
	}
	return "ask its issuer"
}

const issuerBlocks = "its issuer blocks an account of this payment: use another account, or ask the issuer"
