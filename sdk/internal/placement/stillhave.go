package placement

import "context"

// StillHave is how many forgotten leases still have their devices, as what takes them back fails: they are lost to the operator meanwhile.
func (f *Forgotten) StillHave(ctx context.Context) (int, error) {
	_, all, err := f.all(ctx)
	return len(all), err
}
