package metering

import (
	"strconv"
)

// Append writes the canonical form of a reading behind what b holds. It is what
// canonical writes, by hand: a gateway encodes every reading of every device.
func (r *Reading) Append(b []byte) []byte {
	if !r.plain() {
		return append(b, canonical(*r)...) // a copy: r itself stays off the heap
	}
	b = r.At.append(append(b, `{"at":`...))
	b = appendText(b, `,"bootId":"`, r.BootID)
	if r.Detail != "" {
		b = appendText(b, `,"detail":"`, r.Detail)
	}
	b = appendText(b, `,"device":"`, r.Device)
	b = appendText(b, `,"driver":"`, r.Driver)
	b = appendNumber(b, `,"energy":"`, r.Energy)
	b = appendNumber(b, `,"generation":"`, r.Generation)
	b = strconv.AppendUint(append(b, `,"has":`...), uint64(r.Has), 10)
	b = appendText(b, `,"health":"`, string(r.Health))
	b = appendNumber(b, `,"memory":"`, r.Memory)
	b = appendNumber(b, `,"powerBrake":"`, r.PowerBrake)
	b = strconv.AppendUint(append(b, `,"processes":`...), uint64(r.Processes), 10)
	b = appendText(b, `,"seen":"`, r.Seen)
	b = strconv.AppendBool(append(b, `,"simulated":`...), r.Simulated)
	b = appendNumber(b, `,"thermal":"`, r.Thermal)
	b = strconv.AppendUint(append(b, `,"utilization":`...), uint64(r.Utilization), 10)
	return append(b, '}')
}

// plain reports a reading that needs no escape and lists no XID.
func (r *Reading) plain() bool {
	return len(r.XIDs) == 0 && plain(r.BootID) && plain(r.Detail) && plain(r.Device) && plain(r.Driver) && plain(string(r.Health)) && plain(r.Seen)
}

func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

func (t Instant) append(b []byte) []byte {
	b = strconv.AppendInt(append(b, `{"boot":"`...), t.Boot, 10)
	b = strconv.AppendInt(append(b, `","mono":"`...), t.Mono, 10)
	b = strconv.AppendInt(append(b, `","wall":"`...), t.Wall, 10)
	return append(b, `"}`...)
}

func appendText(b []byte, key, text string) []byte {
	return append(append(append(b, key...), text...), '"')
}

func appendNumber(b []byte, key string, n uint64) []byte {
	return append(strconv.AppendUint(append(b, key...), n, 10), '"')
}
