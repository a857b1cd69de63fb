package sim

import (
	"bytes"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"
)

// held is the first seed of the worlds that the aims are held to, and how many there are. They were run for the first time after the
// policy was in a commit.
const held, heldWorlds = 9001, 20

// TestAims: over the 20 held worlds, of 30 minutes each, the mean of (our mean J of a request / that of another policy in the same
// world and for the same requests). Against power of two choices it is at most 0.85, as was aimed for. Against the oracle 1.25 was
// aimed for; it is 1.17, and the bound below keeps it from getting worse.
func TestAims(t *testing.T) {
	var oracle, p2c float64
	worlds, arrivals := DrawAll(held, heldWorlds, 30*time.Minute)
	for i, w := range worlds {
		ours := Run(w, arrivals[i], Ours).J
		oracle += ours / Run(w, arrivals[i], Oracle).J / heldWorlds
		p2c += ours / Run(w, arrivals[i], PeakEWMA).J / heldWorlds
	}
	t.Logf("J is %.3f of the oracle's and %.3f of power of two choices'", oracle, p2c)
	if math.IsNaN(oracle) || oracle > 1.20 {
		t.Errorf("J is %.3f of the oracle's, and was 1.17", oracle)
	}
	if math.IsNaN(p2c) || p2c > .85 {
		t.Errorf("J is %.3f of power of two choices', at most 0.85 is aimed for", p2c)
	}
}

// TestRanking: in the held worlds each rival costs more on average than Ours.
func TestRanking(t *testing.T) {
	if testing.Short() {
		t.Skip("runs every policy")
	}
	worlds, arrivals := DrawAll(held, heldWorlds, 10*time.Minute)
	lines := Compare(worlds, arrivals, append(Rivals(), Ours))
	ours := lines[len(lines)-1]
	for _, l := range lines[:len(lines)-1] {
		if !(l.Mean > ours.Mean) {
			t.Errorf("%s costs %.2f of the oracle, and ours %.2f", l.Name, l.Mean, ours.Mean)
		}
	}
	var out bytes.Buffer
	if err := Write(&out, lines); err != nil || strings.Count(out.String(), "\n") != 2+len(lines) || !strings.Contains(out.String(), "| ours |") {
		t.Errorf("%v\n%s", err, &out)
	}
}

// steady is a server without failures and with little load of others.
func steady(id string, dollars, decode float64) Server {
	return Server{
		ID: id, Price: bySlot(dollars), Slots: 32, RTT: 20 * time.Millisecond, Prefill: 10_000, Decode: decode, Slows: 1,
		Load: Load{Mean: .3, Noise: .05},
	}
}

// part is the share of a run's attempts that went to a server.
func part(s Stats, server int) float64 {
	all := 0
	for _, n := range s.Sent {
		all += n
	}
	return float64(s.Sent[server]) / float64(all)
}

// TestOneOdd: one odd server beside three usual ones. It gets little, nobody's answer is lost for it, and J stays near to the oracle's.
func TestOneOdd(t *testing.T) {
	half := steady("cheap, fails half of the time", .03, 80)
	half.Fails = .5
	liar := steady("claims twice its time", .06, 80)
	liar.Inflates = 2
	gone := steady("vanishes at once", .06, 90)
	gone.Gone = time.Nanosecond
	full := steady("says 429", .06, 90)
	full.Load.Mean, full.Load.Noise, full.Rejects, full.RetryAfter = 1.2, 0, true, 5*time.Second
	for odd, most := range map[*Server]float64{&half: .08, &liar: .02, &gone: .03, &full: .15} {
		t.Run(odd.ID, func(t *testing.T) {
			w := NewWorld(7, []Server{*odd, steady("a", .075, 80), steady("b", .08, 90), steady("c", .09, 70)})
			arrivals := Process{Seed: 7, Rate: 1, Burst: 3}.Arrivals(20 * time.Minute)
			oracle, s := Run(w, arrivals, Oracle), Run(w, arrivals, Ours)
			t.Logf("share %.3f, J %.3f of the oracle's, failed %.4f", part(s, 0), s.J/oracle.J, s.Failed)
			if part(s, 0) > most || s.Failed > .001 || s.J > 1.1*oracle.J {
				t.Errorf("share %.3f, at most %.2f; J %.3f of the oracle's; failed %.4f", part(s, 0), most, s.J/oracle.J, s.Failed)
			}
		})
	}
	slow := steady("slow and cheap", .03, 8)
	w := NewWorld(7, []Server{slow, steady("a", .075, 80), steady("b", .08, 90), steady("c", .09, 70)})
	if s := Run(w, Process{Seed: 7, Rate: 1, Burst: 3}.Arrivals(20*time.Minute), Ours); part(s, 0) > .02 {
		t.Errorf("the slow one gets %.3f", part(s, 0))
	}
}

// TestServers: what a server does to an answer, by the model that the documentation tells.
func TestServers(t *testing.T) {
	a := Arrival{In: 1000, Out: 101}
	plain := Server{Price: bySlot(.072), Slots: 10, RTT: 50 * time.Millisecond, Prefill: 1000, Decode: 10, Slows: 1, Load: Load{Mean: .5}}
	w := NewWorld(1, []Server{plain})
	first, total, queued, full := w.times(0, 0, a, 0, luck{})
	if want := 50*time.Millisecond + lasts(1.5+.15); (first-want).Abs() > time.Microsecond || (total-first-15*time.Second).Abs() > time.Microsecond || queued != 0 || full {
		t.Errorf("half full: first %s, want %s; total %s, queued %s", first, want, total, queued)
	}
	if _, _, queued, _ = w.times(0, 0, a, 6, luck{}); queued != time.Second { // two too many of ten, for 5 s each
		t.Errorf("over full: queued %s, want 1s", queued)
	}
	for name, test := range map[string]struct {
		change func(*Server)
		now    time.Duration
		check  func(answer) bool
	}{
		"429": {func(s *Server) { s.Rejects, s.Load.Mean, s.RetryAfter = true, 1, time.Minute }, 0, func(a answer) bool {
			return a.Outcome == 2 && a.RetryAfter == time.Minute && a.Total == plain.RTT && a.paid.IsZero()
		}},
		"down": {func(s *Server) { s.Outages = []Span{{0, time.Minute}} }, 0, func(a answer) bool { return a.Outcome == 0 && a.Total == plain.RTT }},
		"breaks": {func(s *Server) { s.Outages = []Span{{time.Second, time.Minute}} }, 0, func(a answer) bool {
			return a.Outcome == 0 && a.Total == time.Second && a.paid.IsZero()
		}},
		"up again": {func(s *Server) { s.Outages = []Span{{0, time.Minute}} }, time.Minute, func(a answer) bool { return a.Outcome == 1 }},
		"gone":     {func(s *Server) { s.Gone = 1 }, time.Minute, func(a answer) bool { return a.Outcome == 0 && a.Total == connectTime }},
		"goes":     {func(s *Server) { s.Gone = time.Second }, 0, func(a answer) bool { return a.Outcome == 0 && a.Total == time.Second+connectTime }},
		"fails":    {func(s *Server) { s.Fails = 1 }, 0, func(a answer) bool { return a.Outcome == 0 && a.paid.IsZero() }},
		"lies": {func(s *Server) { s.Inflates = 2 }, 0, func(a answer) bool {
			return a.Outcome == 1 && a.refused && a.Claimed > a.Total && a.paid == plain.Price.Pay(a.Total, 1000, 101)
		}},
		"honest": {func(*Server) {}, 0, func(a answer) bool {
			return a.Outcome == 1 && !a.refused && a.Claimed == a.Total-plain.RTT && a.paid == plain.Price.Pay(a.Claimed, 1000, 101)
		}},
	} {
		s := plain
		test.change(&s)
		if got := NewWorld(1, []Server{s}).attempt(0, 0, 0, test.now, a, 0); !test.check(got) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestSameWorld: a seed says everything, and all policies meet the same dice.
func TestSameWorld(t *testing.T) {
	for seed := range uint64(30) {
		w, p := Draw(seed)
		again, q := Draw(seed)
		a := p.Arrivals(5 * time.Minute)
		if !reflect.DeepEqual(w, again) || !reflect.DeepEqual(a, q.Arrivals(5*time.Minute)) {
			t.Fatalf("seed %d draws two worlds", seed)
		}
		if seed < 3 && !reflect.DeepEqual(Run(w, a, Ours), Run(again, a, Ours)) {
			t.Fatalf("seed %d: two runs differ", seed)
		}
		first := w.attempt(0, 5, 0, time.Minute, a[0], 2)
		if first != again.attempt(0, 5, 0, time.Minute, a[0], 2) || len(w.Servers) < 5 || len(w.Servers) > 12 {
			t.Fatalf("seed %d: the dice fall twice", seed)
		}
	}
}

// TestProcess: requests come as often as the process says, in order, within their bounds.
func TestProcess(t *testing.T) {
	span := 60 * time.Hour
	list := Process{Seed: 3, Rate: 1, Burst: 4}.Arrivals(span)
	want := span.Seconds() * (120 + 4*20) / 140 // two minutes calm, twenty seconds four times as often
	if n := float64(len(list)); math.Abs(n/want-1) > .05 {
		t.Errorf("%d requests, want some %.0f", len(list), want)
	}
	in := 0
	for i, a := range list {
		if i > 0 && a.At < list[i-1].At || a.At > span || a.In < 1 || a.In > 16_000 || a.Out < 1 || a.Out > 2000 {
			t.Fatalf("request %d: %+v", i, a)
		}
		if a.In <= 600 {
			in++
		}
	}
	if share := float64(in) / float64(len(list)); math.Abs(share-.5) > .01 {
		t.Errorf("%.3f of the prompts are under the median", share)
	}
}
