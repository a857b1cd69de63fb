// Package fund is how a person fills a wallet on this machine who has the dollars in another one: in a phone, by a QR code, or in the
// browser, by a page that asks its wallet (EIP-6963) to send them. Nothing is loaded from elsewhere, and no secret is here or on the page.
package fund

import (
	"context"
	"embed"
	"fmt"
	"html/template"
	"image/png"
	"io"
	"math/big"
	"net/http"
	"strings"

	"github.com/boombuler/barcode"
	"github.com/boombuler/barcode/qr"
	"github.com/ethereum/go-ethereum/common"
	"github.com/holiman/uint256"

	"github.com/gpupay/gpupay/sdk/internal/serve"
	"github.com/gpupay/gpupay/sdk/units"
)

// Wallet is what is to be filled, and with what: any other token, and this one on another chain, would be lost.
type Wallet struct {
	Address  common.Address
	ChainID  *big.Int
	Token    common.Address // the stablecoin's contract
	Symbol   string         // its name for people, such as USDC
	Decimals uint8          // of a dollar's base units

	// Balance is what is in the wallet now, in base units of Token. An error is not shown: what is in it is not known then.
	Balance func(context.Context) (uint256.Int, error)
}

// URI asks for the token on its chain, by EIP-681. The amount is left to who sends.
func (w Wallet) URI() string {
	return fmt.Sprintf("ethereum:%s@%s/transfer?address=%s", w.Token, w.ChainID, w.Address)
}

// code is URI as a QR code, a pixel a module, without its margin.
func (w Wallet) code() (barcode.Barcode, error) { return qr.Encode(w.URI(), qr.L, qr.Auto) }

// margin is the light modules around a QR code without which readers find none.
const margin = 4

// WriteCode writes URI as a QR code for a terminal, two rows a line, light on whatever colour the terminal has.
func (w Wallet) WriteCode(out io.Writer) error {
	code, err := w.code()
	if err != nil {
		return err
	}
	size := code.Bounds().Dx()
	dark := func(x, y int) bool {
		if x < 0 || y < 0 || x >= size || y >= size {
			return false
		}
		r, _, _, _ := code.At(x, y).RGBA()
		return r == 0
	}
	var text strings.Builder
	for y := -margin; y < size+margin; y += 2 {
		text.WriteString("\x1b[30;107m")
		for x := -margin; x < size+margin; x++ {
			switch upper, lower := dark(x, y), dark(x, y+1); {
			case upper && lower:
				text.WriteRune('█')
			case upper:
				text.WriteRune('▀')
			case lower:
				text.WriteRune('▄')
			default:
				text.WriteByte(' ')
			}
		}
		text.WriteString("\x1b[0m\n")
	}
	_, err = out.Write([]byte(text.String())) // as one, and by Write alone: who shares out locks that
	return err
}

//go:embed page
var files embed.FS

var page = template.Must(template.ParseFS(files, "page/index.html"))

// chain is ChainID as wallets are asked.
func (w Wallet) chain() string { return "0x" + w.ChainID.Text(16) }

// state is what the page's script asks for again and again.
type state struct {
	Address string `json:"address"`
	Balance string `json:"balance,omitempty"` // dollars; left out where it is not known
}

// Handler serves the page at "/", for who runs the wallet: give it an address of this machine. It changes nothing, and is shown in no frame
// of another page.
func (w Wallet) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(res http.ResponseWriter, _ *http.Request) {
		res.Header().Set("Content-Type", "text/html; charset=utf-8")
		_ = page.Execute(res, struct {
			Wallet Wallet
			Chain  string
		}{w, w.chain()})
	})
	for _, name := range []string{"page.js", "page.css"} {
		mux.HandleFunc("GET /"+name, func(res http.ResponseWriter, r *http.Request) { http.ServeFileFS(res, r, files, "page/"+name) })
	}
	mux.HandleFunc("GET /code.png", w.picture)
	mux.HandleFunc("GET /state", func(res http.ResponseWriter, r *http.Request) {
		s := state{Address: w.Address.Hex()}
		if has, err := w.Balance(r.Context()); err == nil {
			s.Balance = units.Format(has, w.Decimals)
		}
		serve.JSON(res, http.StatusOK, s)
	})
	return http.HandlerFunc(func(res http.ResponseWriter, r *http.Request) {
		h := res.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cache-Control", "no-store")
		mux.ServeHTTP(res, r)
	})
}

// picture is URI's QR code.
func (w Wallet) picture(res http.ResponseWriter, _ *http.Request) {
	code, err := w.code()
	if err == nil {
		code, err = barcode.Scale(code, 8*code.Bounds().Dx(), 8*code.Bounds().Dx())
	}
	if err != nil {
		http.Error(res, "there is no QR code", http.StatusInternalServerError)
		return
	}
	res.Header().Set("Content-Type", "image/png")
	_ = png.Encode(res, code)
}
