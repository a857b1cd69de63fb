package wire

import (
	"net/http"

	"github.com/gpupay/gpupay/metering"
)

// HeaderRecord carries the newest usage record that a renter has, without its
// evidence, when it attaches to a lease, releases or closes: a provider that has
// an older one sees that its database was rolled back, and signs no fork.
const HeaderRecord = "Gpupay-Record"

// ShownRecord is a usage record with its signature and without its evidence, to
// which the record commits by its hash.
type ShownRecord struct {
	Record    metering.Record `json:"record"`
	Signature Bytes           `json:"signature"`
	Binding   *MeterBinding   `json:"binding,omitempty"` // of its lease, where the offer names no meter
}

// Set puts the record into a request's header.
func (s ShownRecord) Set(h http.Header) error {
	text, err := encode(s)
	if err != nil {
		return err
	}
	h.Set(HeaderRecord, text)
	return nil
}

// ParseShownRecord reads the record of a request; nil if it shows none. The
// signature is not checked.
func ParseShownRecord(h http.Header) (*ShownRecord, error) {
	text := h.Get(HeaderRecord)
	if text == "" {
		return nil, nil
	}
	var s ShownRecord
	if err := decode("shown record", text, &s); err != nil {
		return nil, err
	}
	return &s, nil
}
