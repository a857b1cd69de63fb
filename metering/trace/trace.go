// Package trace records the readings of a source and plays them back to a meter, so that
// what happened on one host can be metered again on any other.
//
// A trace is lines of JSON: a header that says what was recorded and how, then
// one reading a line, in the encoding that the Merkle tree of the evidence
// hashes. UUIDs and boot ids are replaced by salted hashes; the salt is thrown
// away.
package trace

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/metering/usage"
)

const (
	format  = "gpupay trace"
	version = 1
	maxLine = 1 << 20
)

// ErrFormat says that bytes are not a trace.
var ErrFormat = errors.New("malformed trace")

// Header is the first line of a trace.
type Header struct {
	Devices   []metering.Device `json:"devices"`
	Format    string            `json:"format"`
	Made      string            `json:"made"`      // how, by whom, on what: for people
	Simulated bool              `json:"simulated"` // no GPU was involved
	Source    string            `json:"source"`    // the name of what was recorded
	Version   int               `json:"version"`
}

// Trace is a recording.
type Trace struct {
	Header
	Readings []metering.Reading // in the order in which they were made
}

// Recorder is a source that writes down what another one reads.
type Recorder struct {
	metering.Source
	salt [32]byte

	mu  sync.Mutex
	w   io.Writer
	err error // of the first write that failed
}

var _ metering.Source = (*Recorder)(nil)

// Record writes a trace of a source to w while it is read. made says, for
// people, what is being recorded. A nil salt is a random one; with a fixed salt
// the same readings make the same bytes.
func Record(ctx context.Context, src metering.Source, w io.Writer, made string, salt *[32]byte) (*Recorder, error) {
	r := &Recorder{Source: src, w: w}
	if salt != nil {
		r.salt = *salt
	} else if _, err := rand.Read(r.salt[:]); err != nil {
		return nil, err
	}
	devices, err := src.Devices(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the devices of %s: %w", src.Name(), err)
	}
	h := Header{Format: format, Made: made, Source: src.Name(), Version: version}
	for _, d := range devices {
		d.UUID, d.Parent, d.BootID = r.hide(d.UUID), r.hide(d.Parent), r.hide(d.BootID)
		h.Devices = append(h.Devices, d)
		h.Simulated = h.Simulated || d.Simulated
	}
	line, err := h.encode()
	if err != nil {
		return nil, err
	}
	return r, r.write(line)
}

// Read reads the source, and writes the reading down.
func (r *Recorder) Read(ctx context.Context, uuid string) (metering.Reading, error) {
	reading, err := r.Source.Read(ctx, uuid)
	if err != nil {
		return reading, err
	}
	hidden := reading
	hidden.Device, hidden.Seen, hidden.BootID = r.hide(reading.Device), r.hide(reading.Seen), r.hide(reading.BootID)
	return reading, r.write(hidden.Encode())
}

// Err is the first write that failed, if one did.
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *Recorder) write(line []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()

	if r.err == nil {
		if _, err := r.w.Write(append(line, '\n')); err != nil {
			r.err = fmt.Errorf("write trace: %w", err)
		}
	}
	return r.err
}

// hide replaces an id by its salted hash, and keeps what kind of id it is.
func (r *Recorder) hide(id string) string {
	if id == "" {
		return ""
	}
	kind := ""
	for _, prefix := range []string{"SIM-GPU-", "GPU-", "MIG-"} {
		if strings.HasPrefix(id, prefix) {
			kind = prefix
			break
		}
	}
	sum := sha256.Sum256(append(r.salt[:], id...))
	return fmt.Sprintf("%s%x-%x-%x-%x-%x", kind, sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// Parse reads a trace. It accepts only what a Recorder writes, byte for byte.
func Parse(r io.Reader) (*Trace, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	if !lines.Scan() {
		return nil, fmt.Errorf("%w: no header: %w", ErrFormat, cmp.Or(lines.Err(), io.ErrUnexpectedEOF))
	}
	t := new(Trace)
	if err := t.header(lines.Bytes()); err != nil {
		return nil, err
	}
	for n := 2; lines.Scan(); n++ {
		reading, err := t.reading(lines.Bytes())
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		t.Readings = append(t.Readings, reading)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return t, nil
}

func (h Header) encode() ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(h); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

func (t *Trace) header(line []byte) error {
	if err := json.Unmarshal(line, &t.Header); err != nil {
		return fmt.Errorf("%w: header: %w", ErrFormat, err)
	}
	if t.Format != format || t.Version != version {
		return fmt.Errorf("%w: it says %.32q version %d, this is for %q version %d", ErrFormat, t.Format, t.Version, format, version)
	}
	again, err := t.encode()
	if err != nil || !bytes.Equal(again, line) {
		return fmt.Errorf("%w: the header is not as a recorder writes it", ErrFormat)
	}
	seen := make(map[string]bool)
	for _, d := range t.Devices {
		if d.UUID == "" || seen[d.UUID] {
			return fmt.Errorf("%w: device %q is without a name, or named twice", ErrFormat, d.UUID)
		}
		seen[d.UUID] = true
	}
	return nil
}

func (t *Trace) reading(line []byte) (metering.Reading, error) {
	var r metering.Reading
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if !bytes.Equal(r.Encode(), line) {
		return r, fmt.Errorf("%w: the reading is not as a recorder writes it", ErrFormat)
	}
	if !slices.ContainsFunc(t.Devices, func(d metering.Device) bool { return d.UUID == r.Device }) {
		return r, fmt.Errorf("%w: a reading of %.64q, which the header does not name", ErrFormat, r.Device)
	}
	return r, nil
}

// Replay gives a meter every reading of its devices, in order.
func (t *Trace) Replay(m *usage.Meter) error {
	devices := m.Config().Devices
	for _, d := range t.Devices {
		if !slices.Contains(devices, d.UUID) {
			continue
		}
		if err := m.Describe(t.name(), d); err != nil {
			return err
		}
	}
	for _, r := range t.Readings {
		if !slices.Contains(devices, r.Device) {
			continue
		}
		if _, err := m.Observe(r); err != nil {
			return err
		}
	}
	return nil
}

func (t *Trace) name() string { return "trace of " + t.Source }
