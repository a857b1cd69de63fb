//go:build !linux || !cgo

package metercost

import (
	"context"

	"github.com/gpupay/gpupay/bench"
)

func measure(context.Context, bench.Settings) (bench.Report, error) {
	r := bench.Report{Title: title, About: []string{"It takes Linux and cgo."}}
	for _, text := range []string{aimTick, aimDay, aimSpace} {
		r.Aims = append(r.Aims, bench.Aim{Text: text, Result: bench.NotMeasured})
	}
	return r, nil
}
