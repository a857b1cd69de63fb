package forwarding

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// BenchmarkFirstByte is when the first byte of an answer is there, of so many streams that begin at one moment and take a second: the median and the
// 99th of a hundred, and what is in memory in the middle of them.
func BenchmarkFirstByte(b *testing.B) {
	all := ways(b)
	for _, streams := range []int{1, 64, 1000} {
		for _, w := range all {
			b.Run(fmt.Sprintf("streams=%d/way=%s", streams, w.name), func(b *testing.B) { firstByte(b, w, streams) })
		}
	}
}

func firstByte(b *testing.B, w way, streams int) {
	if _, err := burst(w, streams, whole); err != nil { // connections are there
		b.Fatal(err)
	}
	var waits []time.Duration
	var memory uint64
	for b.Loop() {
		go func() {
			time.Sleep(events * every / 2)
			var now runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&now)
			memory = max(memory, now.HeapInuse+now.StackInuse)
		}()
		round, err := burst(w, streams, stream)
		if err != nil {
			b.Fatal(err)
		}
		waits = append(waits, round...)
	}
	slices.Sort(waits)
	b.ReportMetric(1e3*waits[len(waits)/2].Seconds(), "ms-first-p50")
	b.ReportMetric(1e3*waits[(len(waits)-1)*99/100].Seconds(), "ms-first-p99")
	b.ReportMetric(float64(memory)/1024/float64(streams), "KiB/stream")
}

// burst sends so many at once.
func burst(w way, n int, body string) ([]time.Duration, error) {
	waits, errs := make([]time.Duration, n), make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			if waits[i], errs[i] = w.ask(body); errors.Is(errs[i], io.ErrUnexpectedEOF) && w.name == "ReverseProxy" { // it breaks one in some thousand streams off
				waits[i], errs[i] = w.ask(body)
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return waits, nil
}

// BenchmarkRequests is a whole answer of a server that answers at once, to 64 clients that each send the next request when they have the answer.
func BenchmarkRequests(b *testing.B) {
	for _, w := range ways(b) {
		b.Run("way="+w.name, func(b *testing.B) { sends(b, w) })
	}
}

func sends(b *testing.B, w way) {
	if _, err := burst(w, 64, whole); err != nil { // connections are there
		b.Fatal(err)
	}
	b.ResetTimer()
	if err := requests(w, b.N); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}

func requests(w way, n int) (failed error) {
	var all sync.WaitGroup
	var mu sync.Mutex
	for client := range 64 {
		all.Go(func() {
			for i := client; i < n; i += 64 {
				if _, err := w.ask(whole); err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
					return
				}
			}
		})
	}
	all.Wait()
	return failed
}

// TestNothingIsLeft: after many requests (GPUPAY_REQUESTS, 3000 of each way) a sidecar has no more goroutines and open files than a ReverseProxy.
func TestNothingIsLeft(t *testing.T) {
	n, err := strconv.Atoi(os.Getenv("GPUPAY_REQUESTS"))
	if err != nil {
		n = 3000
	}
	for _, w := range ways(t) {
		nothingLeft(t, w, n, 2)
	}
}

// nothingLeft holds what is there after n requests to what was before, but for so many connections.
func nothingLeft(t *testing.T, w way, n, connections int) {
	t.Helper()
	if err := requests(w, 640); err != nil {
		t.Fatal(err)
	}
	goroutines, files := settled(w)
	if err := requests(w, n); err != nil {
		t.Fatal(err)
	}
	more := func(g, f int) bool { return g > goroutines+2*connections+1 || f > files+2*connections+1 }
	g, f := settled(w)
	for end := time.Now().Add(20 * time.Second); more(g, f) && time.Now().Before(end); { // what ends may be late
		g, f = settled(w)
	}
	if more(g, f) {
		t.Errorf("%s: %d goroutines and %d files, %d and %d before %d requests", w.name, g, f, goroutines, files, n)
	}
}

// settled is what there is when idle connections are closed.
func settled(w way) (goroutines, files int) {
	w.idle()
	time.Sleep(300 * time.Millisecond)
	open, _ := os.ReadDir("/proc/self/fd")
	return runtime.NumGoroutine(), len(open)
}
