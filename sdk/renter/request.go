package renter

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/gpupay/gpupay/sdk/wire"
)

// credential answers a challenge with payload, showing that it is us.
func (l *leaseStream) credential(ctx context.Context, payload wire.Payload, action string) (wire.Credential, error) {
	challenge, err := l.usable(ctx)
	if err != nil {
		return wire.Credential{}, err
	}
	if action != "" {
		l.name(&payload)
	}
	if action != "" && l.row.Secret != "" {
		payload.LeaseSecret = l.row.Secret
	}
	if action != "" && l.row.Secret == "" {
		if payload.Proof, err = wire.Prove(ctx, l.r.w.Key, l.row.Terms, challenge.ID, action); err != nil {
			return wire.Credential{}, fmt.Errorf("channel %s: signing a proof: %w", l.id, err)
		}
	}
	return wire.Credential{
		Challenge: challenge, Source: wire.Source(l.row.Terms.ChainID, l.row.Terms.Payer), Payload: payload,
	}, nil
}

// name says which channel it is, also to a provider that has lost its database.
func (l *leaseStream) name(payload *wire.Payload) {
	payload.Salt = &l.row.Terms.Salt
	if signer := wire.Address(l.row.Terms.AuthorizedSigner); signer != (wire.Address{}) {
		payload.AuthorizedSigner = &signer
	}
}

// usable returns the newest challenge, or asks for one if it has expired.
func (l *leaseStream) usable(ctx context.Context) (wire.Challenge, error) {
	if l.challenge != nil {
		expires, err := time.Parse(time.RFC3339, l.challenge.Expires)
		if l.challenge.Expires == "" || (err == nil && time.Until(expires) > 5*time.Second) {
			return *l.challenge, nil
		}
	}
	c, _, err := l.peer.Challenge(ctx, l.row.GPUs)
	if err != nil {
		return c, transient{fmt.Errorf("channel %s: %w", l.id, err)}
	}
	l.challenge = &c
	return c, nil
}

// post sends a payload for which no stream is wanted and returns the answer's
// body. A challenge that the provider no longer takes is replaced once.
func (l *leaseStream) post(ctx context.Context, payload wire.Payload, action string, limit time.Duration) ([]byte, http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for attempt := 0; ; attempt++ {
		if action != "" && l.row.Secret == "" {
			l.challenge = nil
		}
		c, err := l.credential(ctx, payload, action)
		if err != nil {
			return nil, nil, err
		}
		header := http.Header{}
		if action != "" {
			if header, err = l.shows(ctx); err != nil {
				return nil, nil, err
			}
		}
		resp, err := l.peer.Send(ctx, http.MethodPost, l.row.GPUs, c, header)
		if err == nil {
			defer resp.Body.Close()
			body, err := l.peer.Body(resp)
			return body, resp.Header, err
		}
		stale := errors.Is(err, &wire.ChallengeNotFound) || errors.Is(err, &wire.PaymentExpired) || errors.Is(err, &wire.InvalidChallenge)
		unknown := action != "" && l.row.Secret != "" && errors.Is(err, &wire.VerificationFailed)
		if attempt > 0 || !(stale || unknown) {
			return nil, nil, err
		}
		if l.challenge = nil; unknown {
			l.row.Secret = ""
		}
	}
}
