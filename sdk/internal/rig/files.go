package rig

import (
	"errors"
	"io/fs"
	"os"
	"testing"
)

// Files are copies of files of a program that is stopped, by their paths.
type Files map[string][]byte

// CopyFiles copies files.
func CopyFiles(t testing.TB, paths ...string) Files {
	t.Helper()
	f := Files{}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f[path] = data
	}
	return f
}

// Restore puts the files back as they were, without what SQLite keeps beside a database.
func (f Files) Restore(t testing.TB) {
	t.Helper()
	for path, data := range f {
		if err := errors.Join(os.WriteFile(path, data, 0o600), remove(path+"-wal"), remove(path+"-shm")); err != nil {
			t.Fatal(err)
		}
	}
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
