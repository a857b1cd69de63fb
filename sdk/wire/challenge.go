package wire

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// What gpupay speaks under the Payment scheme.
const (
	Scheme = "Payment"
	Method = "evm"
	Intent = "session"
)

// Challenge is what a 402 answer asks for: a WWW-Authenticate header of the
// Payment scheme. Request is the base64url text exactly as minted; it is
// echoed untouched, so that the id can be checked without any state.
type Challenge struct {
	ID          string `json:"id"`
	Realm       string `json:"realm"`
	Method      string `json:"method"`
	Intent      string `json:"intent"`
	Request     string `json:"request"`
	Expires     string `json:"expires,omitempty"` // RFC 3339
	Digest      string `json:"digest,omitempty"`
	Description string `json:"description,omitempty"`
	Opaque      string `json:"opaque,omitempty"`
}

// Request is the decoded request of a session challenge. Amount is the price
// of one unit for one GPU, in base units of Currency.
type Request struct {
	Amount           Amount        `json:"amount"`
	UnitType         string        `json:"unitType"` // gpu_second, gpu_minute or gpu_hour
	SuggestedDeposit *Amount       `json:"suggestedDeposit,omitempty"`
	Currency         Address       `json:"currency"`
	Recipient        Address       `json:"recipient"`
	Description      string        `json:"description,omitempty"`
	ExternalID       string        `json:"externalId,omitempty"` // the offer's hash
	MethodDetails    MethodDetails `json:"methodDetails"`
}

// MethodDetails is the evm method's part of a Request.
type MethodDetails struct {
	ChainID         uint64   `json:"chainId"`
	EscrowContract  Address  `json:"escrowContract"`
	ChannelID       string   `json:"channelId,omitempty"`
	MinVoucherDelta *Amount  `json:"minVoucherDelta,omitempty"`
	FeePayer        bool     `json:"feePayer"`
	CredentialTypes []string `json:"credentialTypes,omitempty"`
}

// Minter makes and checks challenges. Any replica with the same secret accepts
// what another minted; nothing is stored until a challenge is used.
type Minter struct {
	Secret []byte // at least 32 random bytes
	Realm  string
	TTL    time.Duration
	Now    func() time.Time
}

// Mint makes a challenge for req, valid for TTL. The nonce makes every
// challenge its own, so that one that was used can be refused for ever.
func (m *Minter) Mint(req Request, nonce string) (Challenge, error) {
	raw, err := canonical(req)
	if err != nil {
		return Challenge{}, err
	}
	opaque, err := canonical(map[string]string{"nonce": nonce})
	if err != nil {
		return Challenge{}, err
	}
	c := Challenge{
		Realm:       m.Realm,
		Method:      Method,
		Intent:      Intent,
		Request:     base64.RawURLEncoding.EncodeToString(raw),
		Expires:     m.Now().Add(m.TTL).UTC().Format(time.RFC3339),
		Description: req.Description,
		Opaque:      base64.RawURLEncoding.EncodeToString(opaque),
	}
	c.ID = m.Bind(c)
	return c, nil
}

// Check reports whether c was minted with this secret and realm (unknown
// challenges are forged) and has not expired.
func (m *Minter) Check(c Challenge) error {
	if c.Realm != m.Realm || !hmac.Equal([]byte(m.Bind(c)), []byte(c.ID)) {
		return ErrChallenge
	}
	if c.Method != Method || c.Intent != Intent {
		return fmt.Errorf("%w: %s/%s, this resource takes %s/%s", ErrMethod, c.Method, c.Intent, Method, Intent)
	}
	expires, err := time.Parse(time.RFC3339, c.Expires)
	if err != nil {
		return malformed("expires %q is not RFC 3339", c.Expires)
	}
	if !m.Now().Before(expires) {
		return fmt.Errorf("%w at %s", ErrExpired, c.Expires)
	}
	return nil
}

// Bind is the id of a challenge with these parameters.
func (m *Minter) Bind(c Challenge) string {
	mac := hmac.New(sha256.New, m.Secret)
	mac.Write([]byte(strings.Join([]string{c.Realm, c.Method, c.Intent, c.Request, c.Expires, c.Digest, c.Opaque}, "|")))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// Decode returns the challenge's request.
func (c Challenge) Decode() (Request, error) {
	var r Request
	err := decode("request", c.Request, &r)
	return r, err
}

// fields are the parameters by name, in the order they are written.
func (c *Challenge) fields() []field {
	return []field{
		{"id", &c.ID}, {"realm", &c.Realm}, {"method", &c.Method}, {"intent", &c.Intent}, {"request", &c.Request},
		{"expires", &c.Expires}, {"digest", &c.Digest}, {"description", &c.Description}, {"opaque", &c.Opaque},
	}
}

type field struct {
	name  string
	value *string
}

// Header is the WWW-Authenticate value.
func (c Challenge) Header() string {
	var b strings.Builder
	b.WriteString(Scheme)
	sep := " "
	for _, f := range c.fields() {
		if *f.value != "" {
			fmt.Fprintf(&b, `%s%s="%s"`, sep, f.name, quote(*f.value))
			sep = ", "
		}
	}
	return b.String()
}

// quote escapes what would end a quoted-string, and drops what a header must
// not carry: line breaks, and anything outside printable ASCII.
func quote(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case !unprintable(r):
			b.WriteRune(r)
		}
	}
	return b.String()
}

func unprintable(r rune) bool { return r < 0x20 || r >= 0x7f }

// ParseChallenges returns the Payment challenges of a 402 answer in order,
// ignoring other schemes and unknown parameters.
func ParseChallenges(h http.Header) ([]Challenge, error) {
	var all []Challenge
	for _, value := range h.Values("WWW-Authenticate") {
		if len(value) > maxHeader {
			return nil, malformed("WWW-Authenticate has %d bytes, at most %d are read", len(value), maxHeader)
		}
		found, err := parseChallenges(value)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func parseChallenges(value string) ([]Challenge, error) {
	var all []Challenge
	var current *Challenge
	p := params{rest: value}
	for p.more() {
		name, val, isParam, err := p.next()
		if err != nil {
			return nil, err
		}
		if !isParam { // a scheme's name starts a new challenge
			current = nil
			if strings.EqualFold(name, Scheme) {
				all = append(all, Challenge{})
				current = &all[len(all)-1]
			}
			continue
		}
		if current != nil {
			current.set(strings.ToLower(name), val)
		}
	}
	for _, c := range all {
		if c.ID == "" || c.Realm == "" || c.Method == "" || c.Intent == "" || c.Request == "" {
			return nil, malformed("a Payment challenge lacks id, realm, method, intent or request")
		}
		for _, f := range c.fields() {
			if f.name != "description" && strings.ContainsFunc(*f.value, unprintable) {
				return nil, malformed("the %s of a Payment challenge cannot be echoed: it is not printable ASCII", f.name)
			}
		}
	}
	return all, nil
}

// set ignores parameters it does not know, as RFC 9110 wants.
func (c *Challenge) set(name, value string) {
	for _, f := range c.fields() {
		if f.name == name {
			*f.value = value
		}
	}
}

// params splits a WWW-Authenticate value into scheme names and parameters
// (RFC 9110, section 11.3).
type params struct{ rest string }

func (p *params) more() bool {
	p.rest = strings.TrimLeft(p.rest, " \t,")
	return p.rest != ""
}

func (p *params) next() (name, value string, isParam bool, err error) {
	end := strings.IndexAny(p.rest, " \t,=")
	if end < 0 {
		end = len(p.rest)
	}
	if end == 0 {
		return "", "", false, malformed("WWW-Authenticate has a stray %q", p.rest[:1])
	}
	name, p.rest = p.rest[:end], p.rest[end:]
	after := strings.TrimLeft(p.rest, " \t")
	if !strings.HasPrefix(after, "=") {
		return name, "", false, nil
	}
	p.rest = strings.TrimLeft(after[1:], " \t")
	if !strings.HasPrefix(p.rest, `"`) {
		end := strings.IndexAny(p.rest, " \t,")
		if end < 0 {
			end = len(p.rest)
		}
		value, p.rest = p.rest[:end], p.rest[end:]
		return name, value, true, nil
	}
	value, err = p.quoted()
	return name, value, true, err
}

func (p *params) quoted() (string, error) {
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; c {
		case '"':
			p.rest = p.rest[i+1:]
			return b.String(), nil
		case '\\':
			if i++; i == len(p.rest) {
				return "", malformed("WWW-Authenticate ends inside a quoted string")
			}
			b.WriteByte(p.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", malformed("WWW-Authenticate ends inside a quoted string")
}
