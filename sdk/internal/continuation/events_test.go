package continuation_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/sdk/internal/continuation"
)

// TestEvents: however a stream's lines end and wherever it is cut, its events are the same, and no byte order mark is in them.
func TestEvents(t *testing.T) {
	t.Parallel()
	const text = "data: a\n\n: b\n\nevent: c\ndata: d\ndata: e\n\ndata: f"
	want := []string{"data: a\n\n", ": b\n\n", "event: c\ndata: d\ndata: e\n\n", "data: f"}
	for _, end := range []string{"\n", "\r", "\r\n"} {
		for _, mark := range []string{"", "\xef\xbb\xbf"} {
			stream := []byte(mark + strings.ReplaceAll(text, "\n", end))
			for size := 1; size <= len(stream); size++ {
				var cut continuation.Events
				var got []string
				for piece := range slices.Chunk(stream, size) {
					cut.Add(piece)
					for event, ok := cut.Next(); ok; event, ok = cut.Next() {
						got = append(got, string(event))
					}
				}
				if got = append(got, string(cut.Rest())); !slices.Equal(got, want) {
					t.Errorf("%q by %d: %q", stream, size, got)
				}
			}
		}
	}
}
