package settle

import "context"

// Once applies the policy once, as Run does after each Interval, and returns when what was due is settled or has failed.
// It is for callers that keep time themselves, and must not run beside Run.
func (s *Settler) Once(ctx context.Context) error {
	s.init()
	err := s.pass(ctx)
	s.work.Wait()
	return err
}
