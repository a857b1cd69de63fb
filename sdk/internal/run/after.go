package run

import (
	"context"
	"time"
)

// unbounded is how long what comes after a call may take that had no deadline.
const unbounded = 30 * time.Second

// After is for what a call must do however it ended, such as taking back what it began: contexts that end with neither the call nor
// who asked for it, each with as long as the call has from now on. So nothing that is undone takes for ever.
func After(call context.Context) func() (context.Context, context.CancelFunc) {
	span := unbounded
	if deadline, ok := call.Deadline(); ok {
		span = time.Until(deadline)
	}
	return func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(context.WithoutCancel(call), span)
	}
}
