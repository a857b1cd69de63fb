package clients

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
)

// says is what the blocks of docs/agents.md print, in their order, among other things.
var says = []string{`"id":"test"`, `"content":"Hello"`, `X-Gpupay-Provider: http://`, "Hello", `weather {"city":"Oslo"}`, "left after 10", "Hello12 degrees in Oslo"}

// page runs the blocks of docs/agents.md, as they stand there but for the proxy's address: those of a shell in one after the other, and each program
// with what the shell exported.
func (w *town) page(url, key string) {
	w.Helper()
	text, err := os.ReadFile("../../docs/agents.md")
	must(w.T, err)
	blocks := regexp.MustCompile("(?s)```(\\w*)\n(.*?)```").FindAllStringSubmatch(string(text), -1)
	if len(blocks) != len(says) {
		w.Fatalf("docs/agents.md has %d blocks, and what %d of them print is known", len(blocks), len(says))
	}
	const address = "http://127.0.0.1:8420"
	exports, _, _ := strings.Cut(blocks[0][2], "\n")
	if !strings.Contains(exports, "OPENAI_BASE_URL="+address+"/v1 OPENAI_API_KEY=none") {
		w.Fatalf("docs/agents.md begins by %s", exports)
	}
	exports = strings.NewReplacer(address, url, "=none", "="+key).Replace(exports) + "\n"
	for i, block := range blocks {
		script := block[2]
		switch block[1] {
		case "sh":
			if _, err := exec.LookPath("curl"); err != nil {
				w.Logf("curl is not installed: not run: %s", script)
				continue
			}
			if i == 0 {
				_, script, _ = strings.Cut(script, "\n")
			}
		case "js":
			if strings.Contains(script, `from "ai"`) && nodeVersion(w.T) < sdkNode {
				w.Logf("Node.js is older than %d: not run: %s", sdkNode, script)
				continue
			}
			script = "node --input-type=module <<'END'\n" + script + "END\n"
		default:
			w.Fatalf("docs/agents.md has a block of %q, which no test runs", block[1])
		}
		cmd := exec.CommandContext(w.Context(), "bash", "-euc", exports+script)
		cmd.Env = append(os.Environ(), "no_proxy=127.0.0.1")
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(strings.ToLower(string(out)), strings.ToLower(says[i])) {
			w.Errorf("%s\n%v: %s", script, err, out)
		}
	}
}
