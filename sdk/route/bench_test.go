package route

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// fleet is a router over n endpoints of one model, most of which have answered.
func fleet(tb testing.TB, n int, seed uint64) *Router {
	tb.Helper()
	random := rand.New(rand.NewPCG(seed, seed))
	r, err := New(Config{Rand: random})
	if err != nil {
		tb.Fatal(err)
	}
	var endpoints []Endpoint
	for i := range n {
		endpoints = append(endpoints, Endpoint{
			ID: fmt.Sprintf("https://%d.example/v1", i), Model: "m", Revision: "r", Quantization: "fp8", Region: "eu", Policies: []string{"no-store"},
			Price: Price{PerSlotSecond: Nanos(10e9 + random.Uint64N(40e9))},
		})
	}
	if err := r.Set(endpoints); err != nil {
		tb.Fatal(err)
	}
	for i := range n * 5 {
		c, err := r.Choose(time.Duration(i)*time.Millisecond, ask)
		if err != nil {
			tb.Fatal(err)
		}
		r.Done(time.Duration(i)*time.Millisecond, c, Result{Outcome: Done, FirstToken: 200 * time.Millisecond, Total: 3 * time.Second, OutTokens: 150})
	}
	return r
}

var ask = Request{
	Model: "m", InTokens: 1000, OutTokens: 200, MaxTokens: 1000, Budget: Base(20_000_000), Revision: "r",
	Quantizations: []string{"fp8", "fp16"}, Regions: []string{"us", "eu"}, Policies: []string{"no-store"},
}

// BenchmarkChoose: of 1,000 candidates that may all take the request; where 31 may, so that each is looked at; and where the budget
// leaves out all, so that what each may cost is worked out.
func BenchmarkChoose(b *testing.B) {
	few := ask
	for i := range 31 {
		few.Only = append(few.Only, fmt.Sprintf("https://%d.example/v1", i*31))
	}
	poor := ask
	poor.Budget = Base(1)
	for name, request := range map[string]Request{"all": ask, "few": few, "none": poor} {
		b.Run(name, func(b *testing.B) {
			r := fleet(b, 1000, 1)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				now := time.Duration(i+5000) * time.Millisecond
				c, _ := r.Choose(now, request)
				r.Done(now, c, Result{Outcome: Done, FirstToken: 200 * time.Millisecond, Total: 3 * time.Second, OutTokens: 150})
			}
		})
	}
}
