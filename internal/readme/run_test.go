package readme

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// said is what a program in the background prints when the next line may come.
var said = regexp.MustCompile(`^(ready: |renting out |Listening on )`)

// TestLinesInTheReadmeRun runs what a newcomer types, from the README and from docs/x402.md, in a shell: a chain, a provider, a renter that
// pays and closes, a bundle that verifies, and a rental over x402. It takes the time that the renters rent.
func TestLinesInTheReadmeRun(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	lines := append(block(t, filepath.Join(root, "README.md")), block(t, filepath.Join(root, "docs", "x402.md"))...)
	if len(lines) != 7 {
		t.Fatalf("the README should take six lines and docs/x402.md one: %q", lines)
	}
	dir := t.TempDir()
	build := strings.Replace(lines[0], "-o bin/", "-o "+dir+"/bin/", 1) // what it makes stays out of the source
	if out, err := inDir(exec.CommandContext(t.Context(), "sh", "-c", build), root).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
	helps(t, filepath.Join(dir, "bin"))
	shell := newShell(t, dir)
	var all string
	for _, line := range lines[1:] {
		all += shell.run(t, line)
	}
	for _, want := range []string{"closed: deposited", "exporting channel 0x", "ok      contract: settled", "verified: all ", "closed: got back"} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing says %q:\n%s", want, all)
		}
	}
}

// TestTwoProgramsOnAnvil runs the lines of docs/two-programs.md, as who has no chain of ours types them.
func TestTwoProgramsOnAnvil(t *testing.T) {
	t.Parallel()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	anvil, err := filepath.Glob(filepath.Join(root, "node_modules/@foundry-rs/anvil-*/bin"))
	if err != nil || len(anvil) != 1 {
		t.Fatalf("anvil is in %q, %v", anvil, err)
	}
	dir := t.TempDir()
	if out, err := inDir(exec.CommandContext(t.Context(), "go", "build", "-o", dir+"/bin/", "./cmd/gpupay"), root).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	shell := newShell(t, dir, "PATH="+anvil[0]+":"+os.Getenv("PATH"), "ANVIL_PORT="+freePorts(t, 1)[0])
	var all string
	for _, line := range block(t, filepath.Join(root, "docs", "two-programs.md")) {
		all += shell.run(t, line)
	}
	for _, want := range []string{"closed: deposited", "exporting channel 0x", "ok      contract: settled", "verified: all "} {
		if !strings.Contains(all, want) {
			t.Errorf("nothing says %q:\n%s", want, all)
		}
	}
}

// helps has every program say what it is for when it is asked for help.
func helps(t *testing.T, bin string) {
	t.Helper()
	programs, err := os.ReadDir(bin)
	if err != nil || len(programs) != 2 {
		t.Fatalf("%d programs, %v", len(programs), err)
	}
	for _, program := range programs {
		out, err := exec.CommandContext(t.Context(), filepath.Join(bin, program.Name()), "--help").Output()
		if err != nil || !strings.Contains(string(out), program.Name()+" ") {
			t.Errorf("%s --help: %v, says %q", program.Name(), err, out)
		}
	}
}

// block is the lines of a document's one block for a shell that a comment says is run.
func block(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "<!-- run by internal/readme")
	_, after, _ = strings.Cut(after, "```sh\n")
	lines, _, closed := strings.Cut(after, "\n```")
	if !found || !closed {
		t.Fatalf("%s has no lines that are run", path)
	}
	return strings.Split(lines, "\n")
}

func inDir(cmd *exec.Cmd, dir string) *exec.Cmd {
	cmd.Dir = dir
	return cmd
}

// shell is one that lines are typed into.
type shell struct {
	in  io.Writer
	out chan string
}

// newShell starts one whose programs use ports of their own, and ends them with the test.
func newShell(t *testing.T, dir string, env ...string) *shell {
	t.Helper()
	ports := freePorts(t, 3)
	cmd := inDir(exec.Command("sh"), dir)
	cmd.Env = append(os.Environ(), "GPUPAY_DEVCHAIN_PORT="+ports[0], "GPUPAY_LISTEN=127.0.0.1:"+ports[1],
		"GPUPAY_PROVIDER=http://127.0.0.1:"+ports[1], "GPUPAY_ADMIN=127.0.0.1:"+ports[2])
	cmd.Env = append(cmd.Env, env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = write, write
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	write.Close()
	s := &shell{in: in, out: make(chan string, 10_000)}
	go func() {
		defer close(s.out)
		for lines := bufio.NewScanner(read); lines.Scan(); {
			s.out <- lines.Text()
		}
	}()
	t.Cleanup(func() {
		fmt.Fprintln(in, "kill $started; wait")
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Log("the shell:", err)
		}
		read.Close()
	})
	return s
}

// run types a line and waits until it is done or, where it goes on in the background, until it says that it is ready.
func (s *shell) run(t *testing.T, line string) string {
	t.Helper()
	background := strings.HasSuffix(line, "&")
	if background {
		fmt.Fprintln(s.in, line+"\nstarted=\"$started $!\"")
	} else {
		fmt.Fprintln(s.in, line+"\necho \"status $?\"")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // of a machine that hangs
	defer cancel()
	var out strings.Builder
	for {
		select {
		case text, ok := <-s.out:
			fmt.Fprintln(&out, text)
			switch status, ended := strings.CutPrefix(text, "status "); {
			case !ok, ended && status != "0":
				t.Fatalf("%s: status %s\n%s", line, status, &out)
			case ended, background && said.MatchString(text):
				return out.String()
			}
		case <-ctx.Done():
			t.Fatalf("%s: it is not done, and not ready\n%s", line, &out)
		}
	}
}

func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var ports []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all of them after the last: no two are one
		_, port, _ := net.SplitHostPort(l.Addr().String())
		ports = append(ports, port)
	}
	return ports
}
