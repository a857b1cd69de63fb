package readme

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// What users say, and what is secret: whatever of this a program prints, logs, exports or keeps has a canary in it.
const (
	prompt      = "canary-prompt"
	answer      = "canary-answer"
	upstreamKey = "canary-of-the-operator"
	strangers   = "canary-of-a-stranger"
)

var canaries = []string{prompt, answer, upstreamKey, strangers}

// guarded is an inference server that answers who has its operator's key, and what it was asked.
type guarded struct{ asked, known atomic.Int64 }

func (g *guarded) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if r.Header.Get("Authorization") == "Bearer "+upstreamKey && strings.Contains(string(body), prompt) {
		g.known.Add(1)
	}
	if r.Method == http.MethodGet {
		_, _ = io.WriteString(w, `{"data":[{"id":"test"}]}`)
		return
	}
	g.asked.Add(1)
	time.Sleep(500 * time.Millisecond)
	if strings.Contains(string(body), "fail") {
		http.Error(w, answer, http.StatusInternalServerError)
		return
	}
	_, _ = io.WriteString(w, `{"choices":[{"message":{"content":"`+answer+`"},"finish_reason":"stop"}]}`+"\n")
}

// tried is the lines of docs/sidecar.md in a shell, as who has an inference server and nothing else types them.
type tried struct {
	*testing.T
	*shell
	engine *guarded
	dir    string
	ports  *strings.Replacer
	all    strings.Builder // what the programs said, without answers
}

func newTried(t *testing.T) (tr *tried, lines []string) {
	t.Helper()
	tr = &tried{T: t, engine: new(guarded), dir: t.TempDir()}
	server := httptest.NewServer(tr.engine)
	t.Cleanup(server.Close)
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if lines = block(t, filepath.Join(root, "docs", "sidecar.md")); len(lines) != 4 {
		t.Fatalf("with git clone these are not five commands: %q", lines)
	}
	build := strings.Replace(lines[0], "-o bin/", "-o "+tr.dir+"/bin/", 1)
	if out, err := inDir(exec.CommandContext(t.Context(), "sh", "-c", build), root).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", build, err, out)
	}
	at := freePorts(t, 1)[0]
	tr.shell = newShell(t, tr.dir, "GPUPAY_SHARE_LISTEN=127.0.0.1:"+at, "GPUPAY_LOG_LEVEL=debug", "GPUPAY_UPSTREAM_KEY="+upstreamKey)
	tr.ports = strings.NewReplacer("http://127.0.0.1:8000", server.URL, "127.0.0.1:8420", "127.0.0.1:"+at, `"Hello"`, `"`+prompt+`"`)
	return tr, lines[1:]
}

// types has the shell run a line.
func (tr *tried) types(line string) (said string) {
	said = tr.run(tr.T, tr.ports.Replace(line))
	for text := range strings.Lines(said) {
		if !strings.HasPrefix(text, `{"choices":`) && text != answer+"\n" {
			tr.all.WriteString(text)
		}
	}
	return said
}

// TestFiveCommandsToAPaidAnswer runs the lines of docs/sidecar.md but the first, by which who types them has this tree. They end with an
// answer, and what was paid for it on the chain within the program. What was asked and answered, and every secret, is then nowhere: neither
// in what the programs say while they run, at debug level, when they export and when they crash, nor in their databases.
func TestFiveCommandsToAPaidAnswer(t *testing.T) {
	t.Parallel()
	tr, lines := newTried(t)
	var said string
	for _, line := range lines {
		said += tr.types(line)
	}
	for _, want := range []string{"NO CHAIN IS NAMED", "no real money moves", "--rpc, --escrow, --token", answer} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing says %q:\n%s", want, said)
		}
	}
	const chat = "http://127.0.0.1:8420/v1/chat/completions"
	tr.types(`curl -s --json '{"fail":"` + prompt + `"}' ` + chat)
	tr.types(`curl -s --json '{"x":"` + prompt + `"}' ` + chat + "/none?" + prompt)
	tr.types(`curl -s -H 'Authorization: Bearer ` + strangers + `' --json '{"x":"` + prompt + `"}' http://$GPUPAY_LISTEN/v1/chat/completions`)
	tr.types(`curl -s http://$GPUPAY_ADMIN/metrics http://$GPUPAY_ADMIN/healthz`)
	tokens := tr.tokens()
	closed := tr.types(`kill $!; wait $!`)
	if paid := regexp.MustCompile(`closed: deposited 0\.40, owed (0\.0000\d*[1-9]), vouchered (\S+), settled (\S+),`).FindStringSubmatch(closed); paid == nil || paid[1] != paid[2] || paid[1] != paid[3] {
		t.Errorf("half a second of a slot was not paid:\n%s", closed)
	}
	tr.types(`bin/gpupay verify export --db $DEVCHAIN_DIR/renter.db --out bundle.json; cat bundle.json; echo`)
	tr.types(lines[1]) // once more, to crash
	tr.types(`curl -s --json '{"x":"` + prompt + `"}' ` + chat)
	tokens = append(tokens, tr.tokens()...)
	tr.types(`kill -QUIT $!; wait $! || true`)
	tr.kept()
	tr.types(`set -- $started; kill -QUIT $1; wait $1 || true`)
	if n, known := tr.engine.asked.Load(), tr.engine.known.Load(); n != 3 || known != 3 {
		t.Errorf("the inference server was asked %d times, %d of them as it should be", n, known)
	}
	if len(tokens) == 0 || !strings.Contains(tr.all.String(), "goroutine 1 ") || !strings.Contains(tr.all.String(), "level=DEBUG") {
		t.Errorf("too little was said to find anything in, and %d tokens: %d bytes", len(tokens), tr.all.Len())
	}
	for _, canary := range append(canaries, tokens...) {
		if before, after, found := strings.Cut(tr.all.String(), canary); found {
			t.Errorf("%s is said: %s", canary, before[max(0, len(before)-300):]+canary+after[:min(len(after), 100)])
		}
	}
}

// databases are the files in the directory that goes with the chain.
func (tr *tried) databases() (files map[string]string) {
	tr.Helper()
	env, err := os.ReadFile(filepath.Join(tr.dir, "devchain.env"))
	dir := regexp.MustCompile(`DEVCHAIN_DIR=(\S+)`).FindSubmatch(env)
	if err != nil || dir == nil {
		tr.Fatalf("devchain.env is %q, %v", env, err)
	}
	files = make(map[string]string)
	all, err := filepath.Glob(filepath.Join(string(dir[1]), "*"))
	if err != nil || len(all) < 2 {
		tr.Fatalf("%q, %v", all, err)
	}
	for _, name := range all {
		text, err := os.ReadFile(name)
		if err != nil {
			tr.Fatal(err)
		}
		files[filepath.Base(name)] = string(text)
	}
	return files
}

// tokens are those of the leases: both sides keep them, since a lease outlives their processes.
func (tr *tried) tokens() (all []string) {
	for _, text := range tr.databases() {
		for _, found := range regexp.MustCompile(`"token":"(gp-[^"]{8,})"`).FindAllStringSubmatch(text, -1) {
			all = append(all, found[1])
		}
	}
	return all
}

// kept fails the test for what is in the databases.
func (tr *tried) kept() {
	for name, text := range tr.databases() {
		for _, canary := range canaries {
			if strings.Contains(text, canary) {
				tr.Errorf("%s is in %s", canary, name)
			}
		}
	}
}
