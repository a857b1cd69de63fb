package sessionscheme

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"time"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
	"github.com/gpupay/gpupay/sdk/wire"
)

// access tells a channel's renter from who read its vouchers off the chain: those are public, and buy nothing alone.
type access struct {
	core
	records *Records
}

// authorize makes sure that the request comes from the renter and not from
// somebody who read its vouchers off the chain: by the secret of the channel's
// newest lease, or a fresh proof over this challenge, which is then used up.
// It returns that lease, nil if there was none yet. The record that the renter
// shows of its lease is heeded here.
func (d *access) authorize(r *Request, s channel.State, action string) (*leasestore.Row, error) {
	newest, proved, err := d.shown(r, s, action)
	if err == nil && proved {
		err = d.Store.Secrets.UseChallenge(r.Context(), r.Cred.Challenge, time.Now())
	}
	if err == nil {
		r.over, err = d.records.heed(r, s)
	}
	return newest, err
}

// shown tells the renter as authorize does, and uses up no challenge: proved says
// that it is a proof that the request shows, and not the secret.
func (d *access) shown(r *Request, s channel.State, action string) (newest *leasestore.Row, proved bool, err error) {
	row, ok, err := d.Store.Leases.Newest(r.Context(), s.ID)
	if err != nil {
		return nil, false, err
	}
	payload := r.Cred.Payload
	if ok {
		newest = &row
	}
	if ok && sameSecret(payload.LeaseSecret, row.SecretHash) {
		return newest, false, nil
	}
	if !wire.CheckProof(s.Terms, r.Cred.Challenge.ID, action, payload.Proof) {
		return nil, false, wire.VerificationFailed.With("%s of channel %s takes the lease's secret or a proof by the payer over this challenge: a voucher alone may be public", action, s.ID)
	}
	return newest, true, nil
}

// randomHash makes a secret that nobody guesses.
func randomHash() (h common.Hash) {
	_, _ = rand.Read(h[:]) // crypto/rand.Read never fails: it ends the program instead
	return h
}

// hashSecret returns what is kept of a lease's secret: whoever reads the database
// cannot attach to a lease with it.
func hashSecret(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// sameSecret reports whether a request has the secret of which hash is kept. None is nobody's.
func sameSecret(secret, hash string) bool {
	return secret != "" && subtle.ConstantTimeCompare([]byte(hashSecret(secret)), []byte(hash)) == 1
}
