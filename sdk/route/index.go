package route

import "fmt"

// model is the endpoints of one, and what all of their answers taught. It is indexed anew whenever they are set, so that a request
// looks only at those that its rules leave.
type model struct {
	states  []*state
	classes []*class
	byID    map[string][]*state
	all     estimator
}

// class is endpoints of a model that the rules on what an offer says treat alike: one look serves for all of them.
type class struct {
	Endpoint // one of them
	states   []*state
	rule     Rule // by which the request at hand leaves them out
	named    int  // of them, those that it ignores
}

// index sorts the endpoints into classes, and by ID.
func (m *model) index() {
	type offer struct{ revision, quantization, region, policies string }
	classes := make(map[offer]*class)
	m.byID = make(map[string][]*state, len(m.states))
	for _, s := range m.states {
		k := offer{s.Revision, s.Quantization, s.Region, fmt.Sprintf("%q", s.Policies)}
		if classes[k] == nil {
			classes[k] = &class{Endpoint: s.Endpoint}
			m.classes = append(m.classes, classes[k])
		}
		s.class = classes[k]
		s.class.states = append(s.class.states, s)
		m.byID[s.ID] = append(m.byID[s.ID], s)
	}
}

// admit is the endpoints that a request's names and the rules on offers leave, until the next call, and how many others each rule
// leaves out.
func (r *Router) admit(m *model, request *Request) (among []*state, out tally) {
	r.asks++
	among = r.among[:0]
	for _, c := range m.classes {
		c.rule, c.named = c.offers(request), 0
	}
	for s := range r.name(m, request.Ignore) {
		s.class.named++
		out.add(RuleOnly, 1)
	}
	if len(request.Only) > 0 {
		out = tally{}
		out.add(RuleOnly, len(m.states))
		for s := range r.name(m, request.Only) {
			out.add(RuleOnly, -1)
			if s.class.rule == "" {
				among = append(among, s)
			} else {
				out.add(s.class.rule, 1)
			}
		}
		r.among = among
		return among, out
	}
	for _, c := range m.classes {
		switch {
		case c.rule != "":
			out.add(c.rule, len(c.states)-c.named)
		case c.named == 0:
			among = append(among, c.states...)
		default:
			for _, s := range c.states {
				if s.named != r.asks {
					among = append(among, s)
				}
			}
		}
	}
	r.among = among
	return among, out
}

// name goes through the endpoints of some IDs, leaving out those that the request has named before.
func (r *Router) name(m *model, ids []string) func(yield func(*state) bool) {
	return func(yield func(*state) bool) {
		for _, id := range ids {
			for _, s := range m.byID[id] {
				if s.named == r.asks {
					continue
				}
				if s.named = r.asks; !yield(s) {
					return
				}
			}
		}
	}
}

// figures are an endpoint's for a request that comes now.
func (m *model) figures(s *state) estimator {
	e := m.known(s)
	return e.beside(s.flying)
}

// known is what was learned of an endpoint, and of the model where nothing was of itself yet.
func (m *model) known(s *state) estimator {
	e := s.estimator
	if e.timed == 0 {
		e.a, e.b, e.q, e.late = m.all.a, m.all.b, m.all.q, max(e.late, m.all.late)
	}
	if e.paced == 0 {
		e.d, e.w, e.slow = m.all.d, m.all.w, max(e.slow, m.all.slow)
	}
	return e
}
