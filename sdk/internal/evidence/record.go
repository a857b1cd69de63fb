package evidence

import (
	"encoding/json"

	"github.com/gpupay/gpupay/metering"
)

// MaxRecord is how long a refused record may be, in bytes as it came, that is
// kept with what its hash stands for: more than that of any number of GPUs that a
// provider lets at once.
const MaxRecord = 256 << 10

// OfRecord is what is kept of a refused record: the record itself, which is signed
// and has no room for anything else, and what it came with if that is not too
// much. A provider that adds a megabyte to its lie has the lie kept.
func OfRecord(rec metering.SignedRecord, document []byte) []byte {
	if len(document) <= MaxRecord {
		return document
	}
	short, err := json.Marshal(Bare(rec))
	if err != nil {
		return document
	}
	return short
}

// Bare is a record without its evidence, whose hash it holds.
func Bare(rec metering.SignedRecord) metering.SignedRecord {
	rec.Evidence = metering.Evidence{}
	return rec
}
