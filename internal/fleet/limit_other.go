//go:build !linux

package fleet

import "errors"

// LimitFiles is there on Linux only.
func LimitFiles(int, int64) error { return errors.ErrUnsupported }
