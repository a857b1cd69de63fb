package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/wire"
)

// traffic is what went over one channel, as seen from outside both programs.
type traffic struct {
	sent         uint256.Int // the highest voucher that the renter let out
	acknowledged uint256.Int // the highest that the provider answered with 200
	shown        uint256.Int // the most that a record which the renter was sent says is owed
	vouchers     int         // acknowledged, each amount once
	records      uint64      // the highest number shown
}

// witness sees everything that provider and renters say to each other, and
// cannot be killed.
type witness struct {
	mu       sync.Mutex
	channels map[common.Hash]*traffic
	lower    int // vouchers that were lower than one before
	unproven int // vouchers over more than the records shown
	wrong    []string
}

func newWitness() *witness { return &witness{channels: make(map[common.Hash]*traffic)} }

func (w *witness) about(id common.Hash) *traffic {
	t := w.channels[id]
	if t == nil {
		t = &traffic{}
		w.channels[id] = t
	}
	return t
}

func (w *witness) snapshot() map[common.Hash]traffic {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make(map[common.Hash]traffic, len(w.channels))
	for id, t := range w.channels {
		all[id] = *t
	}
	return all
}

// left is a voucher on its way from a renter. The renters of the harness prepay
// nothing.
func (w *witness) left(id common.Hash, cumulative uint256.Int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.about(id)
	if cumulative.Lt(&t.sent) {
		w.lower++
		w.wrong = append(w.wrong, fmt.Sprintf("channel %s: a voucher for %s after one for %s", id, cumulative.Dec(), t.sent.Dec()))
		return
	}
	t.sent = cumulative
	if cumulative.Gt(&t.shown) {
		w.unproven++
		w.wrong = append(w.wrong, fmt.Sprintf("channel %s: a voucher for %s, the records shown say %s", id, cumulative.Dec(), t.shown.Dec()))
	}
}

// say notes what must not happen.
func (w *witness) say(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
}

func (w *witness) acknowledged(id common.Hash, cumulative uint256.Int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t := w.about(id); cumulative.Gt(&t.acknowledged) {
		t.acknowledged = cumulative
		t.vouchers++
	}
}

func (w *witness) showed(document []byte) {
	var rec metering.SignedRecord
	if json.Unmarshal(document, &rec) != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t := w.about(rec.ChannelID)
	if rec.Owed.Gt(&t.shown) {
		t.shown = rec.Owed
	}
	t.records = max(t.records, rec.Sequence)
}

// proxy forwards to the provider. Where the provider is gone the renter finds
// its connection cut, as it would without a proxy.
func (w *witness) proxy(target string) (http.Handler, error) {
	to, err := url.Parse(target)
	if err != nil {
		return nil, err
	}
	p := httputil.NewSingleHostReverseProxy(to)
	p.Transport = &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext}
	p.FlushInterval = -1
	p.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	p.ErrorLog = quiet
	p.ModifyResponse = w.answered
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if c, err := wire.ParseCredential(r.Header); err == nil && c.Payload.CumulativeAmount != nil {
			w.left(c.Payload.ChannelID, c.Payload.CumulativeAmount.Int)
		}
		if r.Header.Get("Upgrade") != "" {
			w.duplex(rw, r, target)
			return
		}
		p.ServeHTTP(rw, r)
	}), nil
}

// answered notes what the provider said before the renter hears it.
func (w *witness) answered(resp *http.Response) error {
	if resp.StatusCode != http.StatusOK {
		return nil
	}
	if c, err := wire.ParseCredential(resp.Request.Header); err == nil && c.Payload.CumulativeAmount != nil {
		w.acknowledged(c.Payload.ChannelID, c.Payload.CumulativeAmount.Int)
	}
	if strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		resp.Body = &listener{ReadCloser: resp.Body, w: w}
		return nil
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	resp.Body.Close()
	var answer struct{ Record json.RawMessage }
	if json.Unmarshal(body, &answer) == nil && len(answer.Record) > 0 {
		w.showed(answer.Record)
	}
	resp.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// listener reads a stream over the renter's shoulder.
type listener struct {
	io.ReadCloser
	w    *witness
	rest []byte
}

func (l *listener) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	l.rest = append(l.rest, p[:n]...)
	for {
		event, after, found := bytes.Cut(l.rest, []byte("\n\n"))
		if !found {
			return n, err
		}
		l.rest = after
		for line := range bytes.Lines(event) {
			if data, ok := bytes.CutPrefix(line, []byte("data: ")); ok && bytes.Contains(event, []byte("event: "+wire.EventUsage+"\n")) {
				l.w.showed(data)
			}
		}
	}
}
