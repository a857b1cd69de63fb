package clients

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestNodeClients runs npm's openai and ollama. Each script says what it wants of its client, and that it is done.
func TestNodeClients(t *testing.T) {
	if os.Getenv("GPUPAY_NO_NODE") == "1" {
		t.Skip("GPUPAY_NO_NODE=1")
	}
	base, e := newRig(t)
	for _, script := range []string{"openai.mjs", "ollama.mjs"} {
		cmd := exec.CommandContext(t.Context(), "node", script)
		cmd.Env = append(os.Environ(), "OPENAI_BASE_URL="+base+"/v1", "OPENAI_API_KEY=any", "OLLAMA_HOST="+base, "SLOTS="+slotsText)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil || !bytes.HasSuffix(out.Bytes(), []byte("done\n")) {
			t.Errorf("%s: %v\n%s", script, err, &out)
		}
	}
	for end := time.Now().Add(5 * time.Second); e.running.Load() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d requests run on after their clients have left", e.running.Load())
		}
	}
}
