// Package pgtest starts a real PostgreSQL server for tests: a cluster of its own
// in a scratch directory, reached through a private socket, gone with the test.
//
// It runs what Debian's package postgresql installs. As root it runs as the
// user postgres, which that package makes: the server refuses to be root.
package pgtest

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the database/sql driver
)

// skipVariable lets a machine without PostgreSQL run the other tests. Where it
// is not set, no PostgreSQL is a failure: a test that is skipped unseen shows
// nothing.
const skipVariable = "GPUPAY_NO_POSTGRES"

// Server is a running PostgreSQL.
type Server struct {
	dir  string
	stop chan struct{} // nil: it is not running

	binary   string
	identity *syscall.Credential
	ended    chan struct{}
	output   bytes.Buffer
	created  atomic.Int64
}

var shared struct {
	sync.Mutex
	server *Server
	err    error
}

// URL returns the address of a new, empty schema on a server that all tests of a
// program share: to a program it looks like a database of its own. Call Stop from
// TestMain.
func URL(t testing.TB) string {
	t.Helper()
	return fresh(t, (*Server).Schema)
}

// Database is URL with a database instead of a schema, which takes longer to
// make.
func Database(t testing.TB) string {
	t.Helper()
	return fresh(t, (*Server).Create)
}

func fresh(t testing.TB, make func(*Server) (string, error)) string {
	t.Helper()
	if os.Getenv(skipVariable) == "1" {
		t.Skip(skipVariable + "=1: not tested against PostgreSQL")
	}
	shared.Lock()
	defer shared.Unlock()
	if shared.server == nil && shared.err == nil {
		shared.server, shared.err = Start()
	}
	if shared.err != nil {
		t.Fatalf("%v\n(install the package postgresql, or set %s=1 to go without)", shared.err, skipVariable)
	}
	address, err := make(shared.server)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// Clock is URL where the server's clock can be set: set has clock_timestamp() say what
// the server's own clock says and so much more, to all who use the address from then on.
func Clock(t testing.TB) (address string, set func(ahead time.Duration)) {
	t.Helper()
	address = URL(t)
	schema := address[strings.LastIndex(address, "=")+1:]
	run := func(statement string) {
		t.Helper()
		if err := shared.server.execute(statement); err != nil {
			t.Fatalf("pgtest: %v", err)
		}
	}
	run(`CREATE TABLE ` + schema + `.wall (ahead INTERVAL NOT NULL)`)
	run(`INSERT INTO ` + schema + `.wall VALUES ('0')`)
	run(`CREATE FUNCTION ` + schema + `.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql VOLATILE AS
		$$ BEGIN RETURN pg_catalog.clock_timestamp() + (SELECT ahead FROM ` + schema + `.wall); END $$`)
	return address + ",pg_catalog", func(ahead time.Duration) { // the catalog comes first where it is not named
		t.Helper()
		run(fmt.Sprintf(`UPDATE %s.wall SET ahead = '%d microseconds'`, schema, ahead.Microseconds()))
	}
}

// OwnServer is a server for one test, which may crash it.
func OwnServer(t testing.TB) *Server {
	t.Helper()
	if os.Getenv(skipVariable) == "1" {
		t.Skip(skipVariable + "=1: not tested against PostgreSQL")
	}
	s, err := Start()
	if err != nil {
		t.Fatalf("%v\n(install the package postgresql, or set %s=1 to go without)", err, skipVariable)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// Stop ends the shared server and removes its files. It is safe to call where
// none was started.
func Stop() {
	shared.Lock()
	defer shared.Unlock()
	if shared.server != nil {
		shared.server.Stop()
		shared.server = nil
	}
}

// Main runs a package's tests and ends the shared server. Use it in TestMain:
//
//	func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }
func Main(m *testing.M) int {
	defer Stop()
	return m.Run()
}

// Start makes a cluster and runs a server on it.
func Start() (*Server, error) {
	bin, err := programs()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "gpupay-pg-") // short: a socket's path may have 107 bytes
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir}
	if err := s.start(bin); err != nil {
		return nil, errors.Join(err, s.Stop())
	}
	return s, nil
}

// programs finds the newest installed version.
func programs() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	slices.SortFunc(found, func(a, b string) int { return version(a) - version(b) })
	if len(found) > 0 {
		return filepath.Dir(found[len(found)-1]), nil
	}
	if path, err := exec.LookPath("postgres"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", errors.New("pgtest: no PostgreSQL server is installed")
}

func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	return n
}

func (s *Server) start(bin string) error {
	identity, err := unprivileged(s.dir)
	if err != nil {
		return err
	}
	data := filepath.Join(s.dir, "data")
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", data, "-U", "gpupay", "--auth=trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8")
	initdb.SysProcAttr, initdb.Dir = &syscall.SysProcAttr{Credential: identity}, s.dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return fmt.Errorf("pgtest: initdb: %w\n%s", err, out)
	}
	s.binary, s.identity = filepath.Join(bin, "postgres"), identity
	return s.launch()
}

// Standby is a server for one test that follows this one and can only be read.
func (s *Server) Standby(t testing.TB) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "gpupay-pg-")
	if err != nil {
		t.Fatal(err)
	}
	standby := &Server{dir: dir, binary: s.binary}
	t.Cleanup(func() {
		if err := standby.Stop(); err != nil {
			t.Error(err)
		}
	})
	if standby.identity, err = unprivileged(dir); err != nil {
		t.Fatal(err)
	}
	backup := exec.Command(filepath.Join(filepath.Dir(s.binary), "pg_basebackup"), "-D", filepath.Join(dir, "data"),
		"-h", s.dir, "-U", "gpupay", "-R", "-X", "stream", "-c", "fast", "--no-sync")
	backup.SysProcAttr, backup.Dir = &syscall.SysProcAttr{Credential: standby.identity}, dir
	if out, err := backup.CombinedOutput(); err != nil {
		t.Fatalf("pgtest: pg_basebackup: %v\n%s", err, out)
	}
	if err := standby.launch(); err != nil {
		t.Fatal(err)
	}
	return standby
}

// Synchronous has every commit wait for the standby's disk.
func (s *Server) Synchronous() error {
	return errors.Join(s.execute("ALTER SYSTEM SET synchronous_standby_names = '*'"), s.execute("SELECT pg_reload_conf()"))
}

// FailOver ends the server as a power cut would, for good, and has its standby take
// over.
func (s *Server) FailOver(standby *Server) error {
	s.end()
	return standby.execute("SELECT pg_promote()")
}

// Socket is the path of the socket that the server listens at.
func (s *Server) Socket() string { return filepath.Join(s.dir, ".s.PGSQL.5432") }

// Before is an address of this server's with another server's named before it.
func (s *Server) Before(other *Server, address string) string {
	return strings.Replace(address, url.QueryEscape(s.dir), url.QueryEscape(other.dir+","+s.dir), 1)
}

func (s *Server) launch() error {
	s.output.Reset()
	cmd := exec.Command(s.binary, "-D", filepath.Join(s.dir, "data"), "-k", s.dir, "-c", "listen_addresses=", "-c", "max_connections=300")
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, &s.output, &s.output
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.identity}
	die(cmd)
	started := make(chan error)
	go s.run(cmd, started)
	if err := <-started; err != nil {
		return fmt.Errorf("pgtest: %w", err)
	}
	return s.ready()
}

// run keeps the thread that began the server: the kernel ends the server with it
// (die).
func (s *Server) run(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := cmd.Start()
	if err == nil {
		s.stop, s.ended = make(chan struct{}), make(chan struct{})
	}
	started <- err
	if err != nil {
		return
	}
	defer close(s.ended)
	<-s.stop
	_ = cmd.Process.Signal(syscall.SIGQUIT)
	_ = cmd.Wait()
}

// unprivileged is who runs the server where the test runs as root, and gives it
// the directory.
func unprivileged(dir string) (*syscall.Credential, error) {
	if os.Getuid() != 0 {
		return nil, nil
	}
	who, err := user.Lookup("postgres")
	if err != nil {
		who, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("pgtest: PostgreSQL refuses to run as root, and there is no user postgres: %w", err)
	}
	uid, _ := strconv.Atoi(who.Uid)
	gid, _ := strconv.Atoi(who.Gid)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, os.Chown(dir, uid, gid)
}

func (s *Server) ready() error {
	var err error
	for range 300 {
		if err = s.execute("SELECT 1"); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("pgtest: the server does not answer: %w\n%s", err, s.output.String())
}

// Create makes an empty database and returns its address.
func (s *Server) Create() (string, error) {
	name := fmt.Sprintf("test%d", s.created.Add(1))
	if err := s.execute("CREATE DATABASE " + name); err != nil {
		return "", fmt.Errorf("pgtest: %w", err)
	}
	return s.address(name), nil
}

// Schema makes an empty schema in a database that others use too, and returns
// its address.
func (s *Server) Schema() (string, error) {
	name := fmt.Sprintf("schema%d", s.created.Add(1))
	if err := s.execute("CREATE SCHEMA " + name); err != nil {
		return "", fmt.Errorf("pgtest: %w", err)
	}
	return s.address("postgres") + "&search_path=" + name, nil
}

func (s *Server) address(database string) string {
	return fmt.Sprintf("postgres://gpupay@/%s?host=%s", database, url.QueryEscape(s.dir))
}

func (s *Server) execute(statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	db, err := sql.Open("pgx", s.address("postgres"))
	if err != nil {
		return err
	}
	defer db.Close()
	_, err = db.ExecContext(ctx, statement)
	return err
}

// Crash ends the server without letting it write anything down, and starts it
// again: it recovers from its log, as after a power cut.
func (s *Server) Crash() error {
	s.end()
	return s.launch()
}

// end makes the server drop everything; it ends its children too.
func (s *Server) end() {
	if s.stop != nil {
		close(s.stop)
		<-s.ended
		s.stop = nil
	}
}

// Stop ends the server at once and removes its files.
func (s *Server) Stop() error {
	s.end()
	if !strings.Contains(s.dir, "gpupay-pg-") {
		return nil
	}
	return os.RemoveAll(s.dir)
}
