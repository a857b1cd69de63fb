package store

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jmoiron/sqlx"

	"github.com/gpupay/gpupay/internal/pgtest"
)

// pooler stands before a server as PgBouncer does in session mode: it refuses every start-up parameter that it does not
// keep track of, or drops it as with ignore_startup_parameters.
type pooler struct {
	*testing.T
	socket string
	drops  bool
}

var tracked = []string{"user", "database", "client_encoding", "datestyle", "timezone", "standard_conforming_strings", "application_name"}

// behind is the server's address through a pooler.
func behind(t *testing.T, address string, drops bool) string {
	t.Helper()
	at, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	p := &pooler{T: t, socket: at.Query().Get("host") + "/.s.PGSQL.5432", drops: drops}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go p.serve(conn)
		}
	}()
	query := at.Query()
	query.Set("host", "127.0.0.1")
	query.Set("port", fmt.Sprint(listener.Addr().(*net.TCPAddr).Port))
	query.Set("sslmode", "disable")
	at.RawQuery = query.Encode()
	return at.String()
}

func (p *pooler) serve(client net.Conn) {
	defer client.Close()
	head := make([]byte, 8)
	if _, err := io.ReadFull(client, head); err != nil {
		return
	}
	body := make([]byte, binary.BigEndian.Uint32(head)-8)
	if _, err := io.ReadFull(client, body); err != nil {
		return
	}
	kept := binary.BigEndian.AppendUint32(make([]byte, 4), binary.BigEndian.Uint32(head[4:]))
	if binary.BigEndian.Uint32(head[4:]) == 80877102 { // a cancel request
		kept = append(kept, body...)
	} else {
		words := strings.Split(string(body), "\x00")
		for i := 0; i+1 < len(words) && words[i] != ""; i += 2 {
			if slices.Contains(tracked, strings.ToLower(words[i])) {
				kept = append(kept, words[i]+"\x00"+words[i+1]+"\x00"...)
			} else if !p.drops {
				refuse(client, "unsupported startup parameter: "+words[i])
				return
			}
		}
		kept = append(kept, 0)
	}
	binary.BigEndian.PutUint32(kept, uint32(len(kept)))
	server, err := net.Dial("unix", p.socket)
	if err != nil {
		refuse(client, err.Error())
		return
	}
	defer server.Close()
	if _, err := server.Write(kept); err != nil {
		return
	}
	go func() { _, _ = io.Copy(server, client); server.Close() }()
	_, _ = io.Copy(client, server)
}

func refuse(client net.Conn, why string) {
	fields := "SFATAL\x00VFATAL\x00C08P01\x00M" + why + "\x00\x00"
	_, _ = client.Write(append(binary.BigEndian.AppendUint32([]byte("E"), uint32(len(fields)+4)), fields...))
}

// TestBehindAPooler: through a pooler that refuses start-up parameters, or drops them, a database opens, and what its
// promises rest on is in force, also where the server's own default is weaker. What the address asks for counts.
func TestBehindAPooler(t *testing.T) {
	for name, drops := range map[string]bool{"refuses": false, "drops": true} {
		t.Run(name, func(t *testing.T) {
			direct := pgtest.Database(t)
			weaken := openAt(t, direct)
			if _, err := weaken.writer.Exec("DO $$BEGIN EXECUTE 'ALTER DATABASE ' || current_database() || ' SET synchronous_commit = off'; END$$"); err != nil {
				t.Fatal(err)
			}
			db := openAt(t, behind(t, direct, drops)+"&lock_timeout=7s")
			for setting, want := range map[string]string{"synchronous_commit": "on", "lock_timeout": "7s", "default_transaction_isolation": "read committed"} {
				var got string
				if err := db.writer.Get(&got, "SELECT current_setting($1)", setting); err != nil || got != want {
					t.Errorf("%s is %q, want %q, %v", setting, got, want, err)
				}
			}
			if err := db.Update(t.Context(), func(tx *sqlx.Tx) error { _, err := tx.Exec("CREATE TABLE notes (note TEXT)"); return err }); err != nil {
				t.Error(err)
			}
			if _, err := db.reader.Exec("INSERT INTO notes VALUES ('x')"); err == nil {
				t.Error("what is for reading can write")
			}
		})
	}
}
