package proxy

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/gofrs/flock"
)

// Key is a local key: of a person or program that spends the wallet's budget. Its secret is shown once, and only a hash of it is kept.
type Key struct {
	Name   string   `json:"name"`
	Budget string   `json:"budget,omitempty"` // dollars a day (UTC); the proxy's alone if empty
	Models []string `json:"models,omitempty"` // that it may ask for; all if empty
	Hash   string   `json:"sha256"`           // of the secret, hex
}

// Keys are the local keys in a file, which may be changed while a Server runs. While there is no such file no key is asked for; while
// there is one nobody gets past it without, also where no key is left in it.
type Keys struct {
	path    string
	changed func([]Key) error

	mu   sync.Mutex
	seen bool // a file was there: that it is gone opens nothing
	mod  time.Time
	size int64
	all  []Key
}

// ErrKey says that a local key cannot be added or removed.
var ErrKey = errors.New("local key")

var errNoKey = errors.New("no local key has this secret")

var keyName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// OpenKeys are the keys in a file, which need not be there. Whenever the file was read anew, changed is told before any key is let in, so
// that a key's budget holds from its first request on; its error lets nobody in. It may be nil.
func OpenKeys(path string, changed func([]Key) error) (*Keys, error) {
	k := &Keys{path: path, changed: changed}
	return k, k.load()
}

type keyFile struct {
	Keys []Key `json:"keys"`
}

// load reads the file if it has changed. mu is not held.
func (k *Keys) load() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	info, err := os.Stat(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		k.all, k.mod, k.size = nil, time.Time{}, -1 // it may come back as it was
		return nil
	}
	if err != nil {
		return err
	}
	if k.seen && info.ModTime().Equal(k.mod) && info.Size() == k.size {
		return nil
	}
	k.seen, k.mod, k.size = true, time.Time{}, -1
	k.all = nil // a file that cannot be read lets nobody in
	text, err := os.ReadFile(k.path)
	if err != nil {
		return err
	}
	var file keyFile
	if err := json.Unmarshal(text, &file); err != nil {
		return fmt.Errorf("%s is no file of local keys: %w", k.path, err)
	}
	if k.changed != nil {
		if err := k.changed(file.Keys); err != nil {
			return fmt.Errorf("%s: %w", k.path, err)
		}
	}
	k.all, k.mod, k.size = file.Keys, info.ModTime(), info.Size()
	return nil
}

// find is the key of a secret.
func (k *Keys) find(secret string) (Key, error) {
	if err := k.load(); err != nil {
		return Key{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.seen {
		return Key{}, nil
	}
	hash := hashed(secret)
	for _, key := range k.all {
		if key.Hash == hash {
			return key, nil
		}
	}
	return Key{}, errNoKey
}

// hashed needs no salt: a secret has 256 random bits.
func hashed(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// List is all keys, by name.
func (k *Keys) List() ([]Key, error) {
	if err := k.load(); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.all), nil
}

// Needed reports whether callers need a key.
func (k *Keys) Needed() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.seen
}

// Add makes a key, and returns its secret, which is shown this once.
func (k *Keys) Add(name, budget string, models []string) (secret string, err error) {
	if !keyName.MatchString(name) {
		return "", fmt.Errorf("%w: the name %.80q has other characters than a to z, 0 to 9, dot, dash and underscore, or more than 64", ErrKey, name)
	}
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails
	secret = "gp-" + base64.RawURLEncoding.EncodeToString(raw)
	return secret, k.change(func(all []Key) ([]Key, error) {
		if slices.ContainsFunc(all, func(key Key) bool { return key.Name == name }) {
			return nil, fmt.Errorf("%w: there is one of the name %s: remove it first", ErrKey, name)
		}
		return append(all, Key{Name: name, Budget: budget, Models: models, Hash: hashed(secret)}), nil
	})
}

// Remove takes a key away: the next request with it is refused.
func (k *Keys) Remove(name string) error {
	return k.change(func(all []Key) ([]Key, error) {
		rest := slices.DeleteFunc(all, func(key Key) bool { return key.Name == name })
		if len(rest) == len(all) {
			return nil, fmt.Errorf("%w: there is none of the name %.80q", ErrKey, name)
		}
		return rest, nil
	})
}

// change writes the file anew, beside any other process that does.
func (k *Keys) change(do func([]Key) ([]Key, error)) error {
	lock := flock.New(k.path + ".lock")
	if err := lock.Lock(); err != nil {
		return fmt.Errorf("locking the file of local keys: %w", err)
	}
	defer lock.Unlock()
	all, err := k.List()
	if err != nil {
		return err
	}
	if all, err = do(all); err != nil {
		return err
	}
	text, err := json.MarshalIndent(keyFile{all}, "", "  ")
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(k.path), filepath.Base(k.path)+".*")
	if err != nil {
		return err
	}
	_, err = temp.Write(append(text, '\n'))
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), k.path)
	}
	if err != nil {
		_ = os.Remove(temp.Name())
		return fmt.Errorf("writing the file of local keys: %w", err)
	}
	return k.load()
}
