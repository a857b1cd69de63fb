package slots

import "math"

// reach is how far below the highest id of its lease a request's may be: as many
// requests may overtake it on their way here.
const reach = 4096

// ids are those that a lease has used. Each is used once, or two bills for one id would
// contradict each other; none far below the highest is taken, so that they need no
// more memory than this.
type ids struct {
	highest uint64
	used    [reach / 64]uint64 // those from highest-reach+1 on, by id modulo reach
	floor   uint64             // none up to this one is taken: it may have been used before a restart
}

// take marks an id as used, and reports whether it was free.
func (s *ids) take(id uint64) bool {
	if id == 0 || id <= s.floor || s.highest >= reach && id <= s.highest-reach {
		return false
	}
	if id > s.highest {
		for i := uint64(0); i < min(id-s.highest, reach); i++ {
			s.clear(id - i)
		}
		s.highest = id
	}
	word, bit := &s.used[id%reach/64], uint64(1)<<(id%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

func (s *ids) clear(id uint64) { s.used[id%reach/64] &^= 1 << (id % 64) }

// next is one that nobody has used; 0: there is none.
func (s *ids) next() uint64 {
	if s.highest == math.MaxUint64 {
		return 0
	}
	return s.highest + 1
}
