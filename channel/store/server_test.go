package store

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/channel"
	"github.com/gpupay/gpupay/internal/pgtest"
)

// TestStandbyServesNoReads: with a standby in the address, named first, and asked for, every connection is to the primary;
// with nothing but a standby, a database does not open and says why.
func TestStandbyServesNoReads(t *testing.T) {
	primary := pgtest.OwnServer(t)
	address, err := primary.Create()
	if err != nil {
		t.Fatal(err)
	}
	openAt(t, address)
	standby := primary.Standby(t)
	both := primary.Before(standby, address)
	for _, address := range []string{both, both + "&target_session_attrs=prefer-standby", both + "&target_session_attrs=any"} {
		db := openAt(t, address)
		for name, pool := range map[string]*sqlx.DB{"reader": db.reader, "writer": db.writer, "grouper": db.grouper} {
			for _, conn := range all(t, pool) {
				var behind bool
				if err := conn.GetContext(t.Context(), &behind, "SELECT pg_is_in_recovery()"); err != nil || behind {
					t.Errorf("%s: a %s is a connection to the standby: %v, %v", address, name, behind, err)
				}
				conn.Close()
			}
		}
	}
	alone := primary.Before(standby, address)
	alone = strings.Split(alone, "%2C")[0] // the first host
	for name, open := range map[string]func(context.Context, string) (*DB, error){"Open": Open, "OpenToRead": OpenToRead} {
		db, err := open(t.Context(), alone)
		if err == nil {
			db.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "name the primary") {
			t.Errorf("%s on a standby: %v", name, err)
		}
	}
}

// all takes each connection that a pool may have.
func all(t *testing.T, pool *sqlx.DB) (conns []*sqlx.Conn) {
	t.Helper()
	for range pool.Stats().MaxOpenConnections {
		conn, err := pool.Connx(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	return conns
}

// swallower passes what a server says on until it is told not to: then its connections are dead, and do not say so.
type swallower struct {
	socket string
	mu     sync.Mutex
	mute   chan struct{} // closed: nothing is passed on by the connections that there are
}

func (s *swallower) serve(listener net.Listener) {
	for client, err := listener.Accept(); err == nil; client, err = listener.Accept() {
		s.mu.Lock()
		mute := s.mute
		s.mu.Unlock()
		server, err := net.Dial("unix", s.socket)
		if err != nil {
			client.Close()
			continue
		}
		go func() { _, _ = io.Copy(server, client); server.Close() }()
		go func() {
			defer client.Close()
			for buffer := make([]byte, 1<<16); ; {
				n, err := server.Read(buffer)
				if err != nil {
					return
				}
				select {
				case <-mute:
					continue
				default:
				}
				if _, err := client.Write(buffer[:n]); err != nil {
					return
				}
			}
		}()
	}
}

// hang has the connections of now die; those that come after are well.
func (s *swallower) hang() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.mute)
	s.mute = make(chan struct{})
}

// TestEveryQueryEnds: on a connection that is dead and does not say so each kind of query ends by itself, though its caller
// sets no end, and the next one is answered.
func TestEveryQueryEnds(t *testing.T) {
	at, err := url.Parse(pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	s := &swallower{socket: at.Query().Get("host") + "/.s.PGSQL.5432", mute: make(chan struct{})}
	go s.serve(listener)
	query := at.Query()
	query.Set("host", "127.0.0.1")
	query.Set("port", strconv.Itoa(listener.Addr().(*net.TCPAddr).Port))
	query.Set("sslmode", "disable")
	at.RawQuery = query.Encode()
	config, err := pgx.ParseConfig(at.String())
	if err != nil {
		t.Fatal(err)
	}
	db := pool(config, 1, time.Second, nil)
	defer db.Close()
	var n int
	for name, ask := range map[string]func() error{
		"get":    func() error { return db.Get(&n, "SELECT 1") },
		"select": func() error { return db.Select(&[]int{}, "SELECT generate_series(1, 9)") },
		"exec":   func() error { _, err := db.Exec("SELECT 1"); return err },
		"begin": func() error {
			tx, err := db.Beginx()
			if err == nil {
				err = tx.Rollback()
			}
			return err
		},
	} {
		for range 2 { // the second is on a connection that was used just now, which is not asked first whether it lives
			if err := db.Get(&n, "SELECT 1"); err != nil {
				t.Fatalf("before %s: %v", name, err)
			}
		}
		s.hang()
		ended := make(chan error, 1)
		go func() { ended <- ask() }()
		select {
		case err := <-ended:
			if err != nil && !errors.Is(err, context.DeadlineExceeded) { // nil: it was, and another one took its place
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(15 * time.Second):
			t.Fatalf("%s on a dead connection does not end", name)
		}
	}
	for range 2 {
		if err := db.Get(&n, "SELECT 1"); err != nil {
			t.Fatalf("after all: %v", err)
		}
	}
	s.hang()
	time.Sleep(1100 * time.Millisecond) // idle
	if err := db.Get(&n, "SELECT 1"); err != nil {
		t.Errorf("a connection that died while it was idle costs a query: %v", err)
	}
}

// TestNoQueryRunsForEver: the server ends what runs on and on as well, also where the address would have it otherwise.
func TestNoQueryRunsForEver(t *testing.T) {
	db := openAt(t, pgtest.Database(t)+"&statement_timeout=0&lock_timeout=0")
	for name, pool := range map[string]*sqlx.DB{"reader": db.reader, "writer": db.writer, "grouper": db.grouper} {
		for _, setting := range []string{"statement_timeout", "lock_timeout"} {
			var got string
			if err := pool.Get(&got, "SELECT current_setting($1)", setting); err != nil || got != settings[setting] {
				t.Errorf("%s: %s is %q, %v", name, setting, got, err)
			}
		}
	}
}

// TestLockedRowsHoldUpNoOtherChannel: while somebody else has rows locked, more than there are connections, vouchers of
// another channel are kept; those of the locked ones wait, and are kept when the rows are free.
func TestLockedRowsHoldUpNoOtherChannel(t *testing.T) {
	address := pgtest.Database(t)
	db, other := openAt(t, address), openAt(t, address)
	const stuck = 2 * (writers + 1)
	for salt := range byte(stuck + 1) {
		create(t, db, salt)
		if _, err := db.Payee().Terms(t.Context(), stateOf(salt).ID); err != nil {
			t.Fatal(err)
		}
	}
	free := stateOf(stuck).ID
	tx, err := other.writer.BeginTxx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.Exec("SELECT id FROM payee_channels WHERE id <> $1 FOR UPDATE", free); err != nil {
		t.Fatal(err)
	}
	kept := make(chan error, stuck)
	for salt := range byte(stuck) {
		go func() { kept <- raise(db, stateOf(salt).ID, 5) }()
	}
	for waiting := 0; waiting == 0; { // the first of them does
		if err := other.reader.Get(&waiting, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"); err != nil {
			t.Fatal(err)
		}
	}
	for n := range uint64(20) {
		if err := raise(db, free, n+1); err != nil {
			t.Fatalf("voucher %d of a channel that nobody holds: %v", n+1, err)
		}
	}
	if len(kept) > 0 {
		t.Fatalf("a locked row was written, or the others waited until the lock's time was up: %v", <-kept)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for range stuck {
		if err := <-kept; err != nil {
			t.Error(err)
		}
	}
	for salt := range byte(stuck) {
		if s := load(t, other, stateOf(salt).ID); s.Accepted != units(5) {
			t.Errorf("channel %d has %s", salt, s.Accepted.Dec())
		}
	}
	if db.lanes.wait.Wait(); len(db.lanes.waiting) != 0 {
		t.Errorf("%d lanes are left", len(db.lanes.waiting))
	}
	if s := load(t, other, free); s.Accepted != units(20) || s.Status != channel.Open {
		t.Errorf("kept %+v", s)
	}
}
