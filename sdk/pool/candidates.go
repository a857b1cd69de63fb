package pool

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/gpupay/gpupay/internal/exactjson"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/sdk/route"
)

// Candidate is a model at a provider that may be asked. What it costs and how many requests it takes is in the provider's signed offer,
// and not here.
type Candidate struct {
	URL          string   `json:"url"`                    // the provider's, as for renter.Client.Rent; also the id of its endpoint
	Model        string   `json:"model"`                  // not empty
	Revision     string   `json:"revision,omitempty"`     // of the model; empty: not said
	Quantization string   `json:"quantization,omitempty"` // such as fp8; empty: not said
	Region       string   `json:"region,omitempty"`       // empty: not said
	Policies     []string `json:"policies,omitempty"`     // what it promises, such as no-store
	Prefill      bool     `json:"prefill,omitempty"`      // whether its server honours continue_final_message: who begins to answer may be followed by it
}

// Source is where candidates come from.
type Source interface {
	Candidates(ctx context.Context) ([]Candidate, error)
}

// Bounds of a list of candidates.
const (
	maxList       = 1 << 20 // bytes
	maxCandidates = 1000
	listTimeout   = 20 * time.Second
)

// File is the path of a file with a JSON array of candidates, of at most 1 MiB.
type File string

// Candidates reads the file.
func (f File) Candidates(context.Context) ([]Candidate, error) {
	file, err := os.Open(string(f))
	if err != nil {
		return nil, fmt.Errorf("list of candidates: %w", err)
	}
	defer file.Close()
	return parse(string(f), file)
}

// URL is where a JSON array of candidates is served, of at most 1 MiB. Whoever serves it says who is asked, and so who reads prompts: use https.
type URL struct {
	Address string
	HTTP    *http.Client // http.DefaultClient if nil
}

// Candidates fetches the list, within 20 s.
func (u URL) Candidates(ctx context.Context) ([]Candidate, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	client := u.HTTP
	if client == nil {
		client = http.DefaultClient
	}
	shown := redact.URL(u.Address)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Address, nil)
	if err != nil {
		return nil, fmt.Errorf("list of candidates %s: it is no address", shown)
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("list of candidates %s: %s", shown, redact.Text(err.Error()))
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("list of candidates %s: it is answered %d", shown, res.StatusCode)
	}
	return parse(shown, res.Body)
}

func parse(name string, from io.Reader) (list []Candidate, err error) {
	text, err := io.ReadAll(io.LimitReader(from, maxList+1))
	if err == nil && len(text) > maxList {
		err = fmt.Errorf("it has more than %d bytes", maxList)
	}
	if err == nil {
		list, err = read(text)
	}
	if err == nil {
		err = check(list)
	}
	if err != nil {
		return nil, fmt.Errorf("list of candidates %s: %w", name, err)
	}
	return list, nil
}

// read reads each entry by itself, so that what is wrong with one says which.
func read(text []byte) ([]Candidate, error) {
	var entries []json.RawMessage
	if !json.Valid(text) {
		return nil, errors.New(`it is no JSON, and should be an array: [{"url": "https://gpu.example.org", "model": "NAME"}]`)
	}
	if err := json.Unmarshal(text, &entries); err != nil || entries == nil {
		return nil, errors.New(`it is no JSON array: put its entries into brackets, as in [{"url": "https://gpu.example.org", "model": "NAME"}]`)
	}
	list := make([]Candidate, len(entries))
	for i, entry := range entries {
		var wrong *json.UnmarshalTypeError
		switch err := exactjson.Unmarshal(entry, &list[i]); {
		case errors.As(err, &wrong):
			return nil, fmt.Errorf("candidate %d: %q is a %s, and has to be %s", i+1, cmp.Or(wrong.Field, "the entry"), wrong.Value, kindOf(wrong.Type))
		case err != nil:
			return nil, fmt.Errorf("candidate %d: %w", i+1, err)
		}
	}
	return list, nil
}

// kindOf is what JSON calls a type.
func kindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Struct:
		return `an object such as {"url": .., "model": ..}`
	}
	return "a " + t.String()
}

// check refuses a list that cannot be meant.
func check(list []Candidate) error {
	if len(list) > maxCandidates {
		return fmt.Errorf("it has %d candidates, at most %d are asked", len(list), maxCandidates)
	}
	type name struct{ url, model, revision, quantization string }
	seen := make(map[name]bool)
	for i, c := range list {
		n := name{base(c.URL), c.Model, c.Revision, c.Quantization}
		u, err := url.Parse(c.URL)
		switch {
		case c.URL == "":
			return fmt.Errorf(`candidate %d has no "url"`, i+1)
		case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || strings.ContainsAny(c.URL, "?#") || len(c.URL) > 512:
			return fmt.Errorf(`candidate %d: "url" is no provider's, such as https://host/path of at most 512 bytes, without a password or a query`, i+1)
		case c.Model == "":
			return fmt.Errorf(`candidate %d, %.100q, has no "model"`, i+1, redact.URL(c.URL))
		}
		if seen[n] {
			return fmt.Errorf("candidate %d: %.100q serves %.100q twice", i+1, redact.URL(c.URL), c.Model)
		}
		seen[n] = true
	}
	return nil
}

// base is a provider's URL as its rentals have it, however its scheme, host and port are spelled: one provider has one deposit.
func base(address string) string {
	address = strings.TrimRight(address, "/")
	u, err := url.Parse(address)
	scheme, rest, ok := strings.Cut(address, "://")
	if err != nil || !ok || u.User != nil {
		return address
	}
	authority, path := rest, ""
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority, path = rest[:i], rest[i:]
	}
	if scheme = strings.ToLower(scheme); strings.Contains(authority, "%") { // a zone, or a name that is spelled out: either is left as it is
		return scheme + "://" + authority + path
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.String()
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port, err := strconv.ParseUint(u.Port(), 10, 16); err == nil && port != map[string]uint64{"http": 80, "https": 443}[scheme] {
		host = fmt.Sprintf("%s:%d", host, port)
	}
	return scheme + "://" + host + path
}

// ErrEndpoint says that no signed offer of an endpoint stands, or that it takes no requests now. Nothing was reserved.
var ErrEndpoint = errors.New("endpoint takes no requests now")

// endpoint is a candidate with the price of its signed offer.
func (c Candidate) endpoint(t terms) route.Endpoint {
	return route.Endpoint{
		ID: c.URL, Model: c.Model, Revision: c.Revision, Quantization: c.Quantization, Region: c.Region, Policies: c.Policies, Prefill: c.Prefill,
		Price: route.Price{PerSlotSecond: t.price}, MaxInFlight: t.slots,
	}
}
