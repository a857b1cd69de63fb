package upstream

// Verdict reads an answer as it passes, for whether it is whole, as a Proxy does: by its structure and never by its text.
type Verdict struct{ judge *judge }

// NewVerdict is for an answer of a media type. Of one that has no structure to go by, all is well.
func NewVerdict(contentType string) *Verdict { return &Verdict{newJudge(contentType)} }

// Read takes the next piece of the answer.
func (v *Verdict) Read(p []byte) {
	if v.judge != nil {
		v.judge.read(p)
	}
}

// Failed reports whether an error was reported in what was read.
func (v *Verdict) Failed() bool { return v.judge != nil && v.judge.failed }

// Over reports whether what was read says that nothing comes after it: the answer is over, though its sender may keep it open.
func (v *Verdict) Over() bool { return v.judge != nil && v.judge.last }

// Whole reports whether the answer, which is over, has its end and no error. It is asked once.
func (v *Verdict) Whole() bool {
	if v.judge == nil {
		return true
	}
	v.judge.close()
	return !v.judge.failed && !v.judge.unfinished()
}
