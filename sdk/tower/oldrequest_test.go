package tower_test

import (
	"log/slog"
	"net/http"
	"testing"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/tower"
)

// takeBack has a payer take its close request back.
func (l *lookout) takeBack(terms channel.Terms) {
	l.T.Helper()
	sig, err := l.Payer.Sign(l.T.Context(), l.Contract.Domain().CancelCloseDigest(terms.ID(), l.requests(terms), 1<<40))
	if err != nil {
		l.T.Fatal(err)
	}
	l.Send(l.Others, l.Contract.CancelCloseAuthorizedCall(terms, 1<<40, sig))
}

// requests is how many close requests a channel has seen.
func (l *lookout) requests(terms channel.Terms) uint64 {
	l.T.Helper()
	n, err := l.Contract.CloseRequests(l.T.Context(), terms.ID())
	if err != nil {
		l.T.Fatal(err)
	}
	return n
}

// TestOldRequestReplacesNoNewer: a close request that was used is public, and a stranger may send it to a tower again. It takes the
// place of none that is newer: after a re-org that one is what brings the payer out.
func TestOldRequestReplacesNoNewer(t *testing.T) {
	l := newLookout(t, nil)
	terms := l.Open(1, 1000)
	old := l.request(l.Payer, terms, 0, 1<<40)
	l.RequestClose(terms)
	l.takeBack(terms)
	if v := l.view(terms); v.CloseRequestedAt != 0 {
		t.Fatal("it still closes")
	}
	l.Mine(t, 5)
	l.RequestClose(terms) // by somebody else than the tower, with the next nonce
	relay := &tower.Client{URL: l.server.URL, Log: slog.New(slog.DiscardHandler)}
	if err := relay.RequestClose(t.Context(), l.request(l.Payer, terms, l.requests(terms)-1, 1<<40)); err != nil {
		t.Fatal(err)
	}
	earlier := l.request(l.Payer, terms, l.requests(terms)-1, 1)
	for _, public := range []any{old, earlier} {
		if status, answer := l.post("/close-requests", public); status != http.StatusOK {
			t.Fatalf("%d %s", status, answer)
		}
	}
	l.Reorg(t, 2)
	if l.view(terms).CloseRequestedAt != 0 {
		t.Fatal("the re-org did not undo it")
	}
	l.Eventually("the newest request is sent again", func() bool {
		l.Mine(t, 1)
		return l.view(terms).CloseRequestedAt != 0
	})
}
