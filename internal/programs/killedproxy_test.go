package programs

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/crypto"
	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/proxying"
	"github.com/gpupay/gpupay/sdk/renter"
	"github.com/gpupay/gpupay/sdk/wallet"
)

// TestKilledProxy: a proxy's process is killed at one moment after the other of two answers that run at once: while their deposit is being
// made, at their first word, in the middle, before their end. Each start goes on with the one channel that there is, and answers at once. In the end
// the provider was paid for the time in which answers ran and not more, everything else is back, and the books say the same.
func TestKilledProxy(t *testing.T) {
	w := newWorld(t)
	private, payer := w.payer(t)
	provider, _ := w.serveTale(t, 2, -1)
	list, _ := json.Marshal([]map[string]any{{"url": provider, "model": "m", "prefill": true}})
	w.write(t, "providers.json", list)
	secret := "GPUPAY_KEY=" + hex.EncodeToString(crypto.FromECDSA(private))
	const line = "proxy --providers providers.json --dir proxy --admin= --poll 50ms "

	began := time.Now()
	for moment := range 7 {
		listen := freeAddress(t)
		url := "http://" + listen
		p := w.start(t, line+"--listen "+listen, secret)
		listed(t, url, 1)
		words := make(chan string, 100)
		for range 2 {
			go tell(words, url, `{"model":"m","stream":true,"messages":[{"role":"user","content":"Count."}],"max_tokens":100}`)
		}
		switch {
		case moment == 0:
			time.Sleep(100 * time.Millisecond) // a rental is being opened
		default:
			for range 1 + 4*(moment-1) {
				if word := <-words; strings.HasPrefix(word, "error") {
					t.Fatalf("moment %d: %s\n%s", moment, word, p)
				}
			}
		}
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.done
	}
	listen := freeAddress(t)
	p := w.start(t, line+"--listen "+listen, secret)
	listed(t, "http://"+listen, 1)
	words := make(chan string, 100)
	tell(words, "http://"+listen, `{"model":"m","stream":true,"messages":[{"role":"user","content":"Count."}],"max_tokens":100}`)
	close(words)
	var text strings.Builder
	for word := range words {
		text.WriteString(word)
	}
	if text.String() != tale {
		t.Errorf("%q", text.String())
	}
	p.interrupt(t)
	p.wait(t, "")
	ran := time.Since(began)

	w.start(t, line+"--return", secret).wait(t, "What providers held is back in the wallet.")
	spent, paid := funds-w.balance(t, payer), w.balance(t, crypto.PubkeyToAddress(w.Keys[2].PublicKey))
	books := proxying.Proxying{Dir: filepath.Join(w.dir, "proxy"), Key: channel.NewKey(private),
		Client: renter.Config{RPC: w.URL, Token: w.Token, Chain: wallet.Chain{Poll: 50 * time.Millisecond, ClockTolerance: 24 * time.Hour}}}
	settled := w.settled(t, books, 1)
	if most := uint64(2 * 250 * (ran.Seconds() + 1)); spent != settled || paid != settled || settled == 0 || settled > most { // a slot's second is 250
		t.Errorf("%d base units were spent, %d settled and %d paid; at most %d may be", spent, settled, paid, most)
	}
}

// tell asks for an answer and says its words, or what was wrong.
func tell(words chan<- string, url, body string) {
	res, err := http.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(body))
	if err != nil {
		words <- "error: " + err.Error()
		return
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		words <- fmt.Sprint("error: HTTP ", res.StatusCode)
		return
	}
	for events := bufio.NewScanner(res.Body); events.Scan(); {
		event, is := strings.CutPrefix(events.Text(), "data: ")
		if !is || event == "[DONE]" {
			continue
		}
		var e struct {
			Choices []struct{ Delta struct{ Content string } }
			Error   json.RawMessage
		}
		if err := json.Unmarshal([]byte(event), &e); err != nil || len(e.Choices) != 1 {
			words <- "error: " + event
			return
		}
		if word := e.Choices[0].Delta.Content; word != "" {
			words <- word
		}
	}
}
