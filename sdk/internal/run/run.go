// Package run runs the parts of a program that end together.
package run

import (
	"context"
	"errors"
)

// Together runs parts until the context ends or one of them does, and waits for
// all.
func Together(ctx context.Context, parts ...func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(parts))
	for _, run := range parts {
		go func() { ended <- run(ctx) }()
	}
	err := <-ended
	cancel()
	for range len(parts) - 1 {
		<-ended
	}
	return err
}

// Ended is what a part ended with, and nothing if it was told to end.
func Ended(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}
