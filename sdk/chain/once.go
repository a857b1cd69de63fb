package chain

import "context"

// SendOnce sends a call that only works once, or takes the one of its kind that is on its way already about the same channel, and
// waits until it has that many confirmations.
func (s *Sender) SendOnce(ctx context.Context, call Call, confirmations uint64) error {
	if err := s.Sync(ctx); err != nil { // what a re-org undid is on its way again, and pending
		return err
	}
	sent, err := s.Find(ctx, call.Channels[0])
	if err != nil {
		return err
	}
	for _, tx := range sent {
		if tx.Call.Kind == call.Kind && tx.State == Pending && tx.Sender == s.Address() {
			_, err := s.Wait(ctx, tx.ID, confirmations)
			return err
		}
	}
	id, err := s.Submit(ctx, call)
	if err != nil {
		return err
	}
	_, err = s.Wait(ctx, id, confirmations)
	return err
}
