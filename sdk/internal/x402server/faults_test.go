package x402server

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/x402"
)

// TestUnknownRestIsNotCharged: where it cannot be read what rounding left before, a record is not stored without that.
func TestUnknownRestIsNotCharged(t *testing.T) {
	t.Parallel()
	b := &meteredBooks{T: t, path: filepath.Join(t.TempDir(), "p.db"), terms: channel.Terms{Payer: common.Address{1}, Scheme: channel.BatchSettlement}}
	b.price = metering.Price{Amount: *uint256.NewInt(1), Unit: metering.Second}
	b.open()
	defer b.close()
	err := b.desk.DB.Update(t.Context(), func(tx *sqlx.Tx) error {
		_, err := b.desk.Carry(tx, metering.Price{Amount: *uint256.NewInt(1), Unit: "year"}, metering.SignedRecord{Record: metering.Record{ChannelID: b.terms.ID(), Nanos: 1, Final: true}})
		return err
	})
	if err == nil {
		t.Error("no error of a price by no unit")
	}
	err = b.desk.DB.Update(t.Context(), func(tx *sqlx.Tx) error {
		if _, err := tx.Exec(`ALTER TABLE x402_channels RENAME TO gone`); err != nil {
			t.Error(err)
		}
		_, err := b.desk.Carry(tx, b.price, metering.SignedRecord{Record: metering.Record{ChannelID: b.terms.ID(), Final: true}})
		return err
	})
	if err == nil {
		t.Error("no error")
	}
}

// gone is a client that has left.
type gone struct{ http.ResponseWriter }

func (gone) Write([]byte) (int, error) { return 0, errors.New("it has left") }

// TestAnswerThatNobodyTook: it is told, so that it is kept to be asked for again.
func TestAnswerThatNobodyTook(t *testing.T) {
	t.Parallel()
	a, err := NewAnswer(Entry{}, x402.SettleResponse{}, "x")
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if err := a.Send(httptest.NewRecorder(), r); err != nil {
		t.Error(err)
	}
	if a.Send(gone{httptest.NewRecorder()}, r) == nil {
		t.Error("an answer that could not be written counts as taken")
	}
}
