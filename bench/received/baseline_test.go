package received

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ethereum/go-ethereum/common"
	"github.com/syndtr/goleveldb/leveldb"
	"github.com/syndtr/goleveldb/leveldb/opt"

	"github.com/gpupay/gpupay/channel"
)

// rpc is how long a question to a node on the same network takes.
const rpc = time.Millisecond

// record is a channel as a key-value store keeps it.
type record struct {
	Channel    common.Hash `json:"channelId"`
	Cumulative uint64      `json:"cumulativeAmount"`
	Signature  []byte      `json:"signature"`
}

// verify is the same for all: the others have our digest, which is cheaper than the usual ones.
func verify(b *book, v channel.Voucher) error { return b.domain.Verify(v, b.key.Address()) }

// keyValue keeps JSON in LevelDB. To read, compare and write is one step, under a lock. With a lock for each channel LevelDB
// merges the writes that wait into one sync.
type keyValue struct {
	book   *book
	db     *leveldb.DB
	write  *opt.WriteOptions
	locked bool // verify, and ask a node, under the lock
	locks  []sync.Mutex
}

// keyValues has one lock for all channels, or many.
func keyValues(synced, locked bool, locks int) func(testing.TB, *book) payee {
	return func(t testing.TB, b *book) payee {
		db, err := leveldb.OpenFile(t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return &keyValue{b, db, &opt.WriteOptions{Sync: synced}, locked, make([]sync.Mutex, locks)}
	}
}

func (k *keyValue) accept(_ context.Context, waiting []channel.Voucher) error {
	for _, v := range waiting {
		if err := k.take(v); err != nil {
			return err
		}
	}
	return nil
}

func (k *keyValue) take(v channel.Voucher) error {
	if !k.locked {
		if err := verify(k.book, v); err != nil {
			return err
		}
	}
	lock := &k.locks[(int(v.ChannelID[30])<<8|int(v.ChannelID[31]))%len(k.locks)]
	lock.Lock()
	defer lock.Unlock()
	if k.locked {
		if err := verify(k.book, v); err != nil {
			return err
		}
		time.Sleep(rpc)
	}
	r, err := k.read(v.ChannelID)
	if err != nil || v.Cumulative.Uint64() <= r.Cumulative {
		return err
	}
	text, err := json.Marshal(record{v.ChannelID, v.Cumulative.Uint64(), v.Signature})
	if err != nil {
		return err
	}
	return k.db.Put(v.ChannelID[:], text, k.write)
}

func (k *keyValue) read(id common.Hash) (r record, err error) {
	text, err := k.db.Get(id[:], nil)
	if errors.Is(err, leveldb.ErrNotFound) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(text, &r)
}

func (k *keyValue) kept(_ context.Context, t channel.Terms) (uint64, error) {
	r, err := k.read(t.ID())
	return r.Cumulative, err
}

func (k *keyValue) close() error { return k.db.Close() }

// memory forgets everything when the process ends.
type memory struct {
	book   *book
	shards [64]struct {
		sync.Mutex
		newest map[common.Hash]record
	}
}

func openMemory(b *book) payee {
	m := &memory{book: b}
	for i := range m.shards {
		m.shards[i].newest = make(map[common.Hash]record)
	}
	return m
}

func (m *memory) accept(_ context.Context, waiting []channel.Voucher) error {
	for _, v := range waiting {
		if err := verify(m.book, v); err != nil {
			return err
		}
		s := &m.shards[v.ChannelID[31]%64]
		s.Lock()
		if v.Cumulative.Uint64() > s.newest[v.ChannelID].Cumulative {
			s.newest[v.ChannelID] = record{v.ChannelID, v.Cumulative.Uint64(), v.Signature}
		}
		s.Unlock()
	}
	return nil
}

func (m *memory) kept(_ context.Context, t channel.Terms) (uint64, error) {
	id := t.ID()
	s := &m.shards[id[31]%64]
	s.Lock()
	defer s.Unlock()
	return s.newest[id].Cumulative, nil
}

func (m *memory) close() error { return nil }
