package pgtest

import (
	"database/sql"
	"os"
	"testing"
)

func TestMain(m *testing.M) { os.Exit(Main(m)) }

// Each call gives a database of its own, and it is a server that syncs.
func TestEmptyAndOnesOwn(t *testing.T) {
	for _, address := range []string{URL(t), URL(t), Database(t), Database(t)} {
		db, err := sql.Open("pgx", address)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if _, err := db.Exec("CREATE TABLE mine (n INTEGER)"); err != nil {
			t.Error(err)
		}
		var fsync string
		if err := db.QueryRow("SHOW fsync").Scan(&fsync); err != nil || fsync != "on" {
			t.Errorf("fsync is %q, %v", fsync, err)
		}
	}
}

// What was committed is there after a crash.
func TestCrash(t *testing.T) {
	s := OwnServer(t)
	address, err := s.Schema()
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("pgx", address)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE kept (n INTEGER)"); err != nil {
		t.Fatal(err)
	}
	if err := s.Crash(); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("INSERT INTO kept VALUES (1)"); err != nil {
		t.Error(err)
	}
}
