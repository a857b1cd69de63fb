package usage

// Class is where the time of an interval went.
type Class string

const (
	Opened    Class = "opened"    // the first reading: there is no interval yet
	Allocated Class = "allocated" // billed
	Gap       Class = "gap"       // not observed: not billed
	Down      Class = "down"      // observed broken: not billed
	Paused    Class = "paused"    // the lease was suspended: not billed
	Late      Class = "late"      // older than the reading before, or of the second boot after it in one record: dropped
)

// Interval is what a meter made of the time between two readings.
type Interval struct {
	Class  Class
	Nanos  int64
	Reason string // of a gap or of down time; of paused time, why it would not be billed otherwise
}
