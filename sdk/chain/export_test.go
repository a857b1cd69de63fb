package chain

import "time"

// Wait is how long one of several endpoints may take.
func (e *Endpoints) Wait(d time.Duration) { e.share = d }
