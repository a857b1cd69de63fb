package wire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Names of a stream's events, in the order a renter first meets them. Lease,
// usage and status are gpupay's; the others are the draft's.
const (
	EventLease       = "lease"
	EventUsage       = "usage" // a metering.SignedRecord; its id is the sequence number
	EventStatus      = "status"
	EventNeedVoucher = "payment-need-voucher"
	EventReceipt     = "payment-receipt" // the last event of a stream
)

// Comment keeps a stream alive and says nothing.
const Comment = ": still here\n\n"

// MaxEvent bounds one event, in bytes. Evidence is a few KiB for eight devices.
const MaxEvent = 1 << 20

// ErrEventTooLong is returned for an event of more than 1 MiB.
var ErrEventTooLong = errors.New("event is longer than 1 MiB")

// Event is one server-sent event (WHATWG HTML, section 9.2).
type Event struct {
	ID   uint64 // 0: none
	Name string
	Data []byte
}

// NewEvent makes an event of v's JSON.
func NewEvent(id uint64, name string, v any) (Event, error) {
	raw, err := marshal(v)
	return Event{ID: id, Name: name, Data: raw}, err
}

// WriteTo writes the event as it stands in a stream.
func (e Event) WriteTo(w io.Writer) (int64, error) {
	var b bytes.Buffer
	if e.ID != 0 {
		fmt.Fprintf(&b, "id: %d\n", e.ID)
	}
	fmt.Fprintf(&b, "event: %s\n", e.Name)
	for line := range bytes.SplitSeq(e.Data, []byte("\n")) {
		fmt.Fprintf(&b, "data: %s\n", line)
	}
	b.WriteByte('\n')
	return b.WriteTo(w)
}

// Events reads a stream.
type Events struct{ r *bufio.Reader }

// NewEvents reads the stream r.
func NewEvents(r io.Reader) *Events { return &Events{bufio.NewReaderSize(r, 8<<10)} }

// Next returns the next event; io.EOF at the stream's end. Comments (which
// keep a connection alive) are skipped.
func (s *Events) Next() (Event, error) {
	var e Event
	var data [][]byte
	size := 0
	for {
		line, err := s.line(MaxEvent - size)
		if err != nil {
			return Event{}, err
		}
		size += len(line)
		if len(line) == 0 {
			if e.Name == "" && len(data) == 0 {
				size = 0
				continue
			}
			e.Data = bytes.Join(data, []byte("\n"))
			return e, nil
		}
		field, value, _ := strings.Cut(string(line), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			e.Name = value
		case "data":
			data = append(data, []byte(value))
		case "id":
			e.ID, _ = strconv.ParseUint(value, 10, 64) // a foreign id is no resume point: 0
		}
	}
}

func (s *Events) line(limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := s.r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > limit {
			return nil, ErrEventTooLong
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err // an event cut off by the end of the stream does not count
		}
		return bytes.TrimRight(line, "\r\n"), nil
	}
}
