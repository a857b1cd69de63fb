package pool_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gpupay/gpupay/sdk/pool"
)

// TestListsSayWhatIsWrong: in one line, which names the file, the entry and the member, and has no password in it.
func TestListsSayWhatIsWrong(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "providers.json")
	const good = `{"url":"https://a.example","model":"m"},`
	for text, says := range map[string]string{
		`{"url":"https://a.example","model":"m"}`: "no JSON array", `null`: "no JSON array", `[`: "no JSON,", `[` + good + `7]`: `candidate 2: "the entry" is a number`,
		`[` + good + `{"url":"https://b.example"}]`: `candidate 2, "https://b.example", has no "model"`, `[{"model":"m"}]`: `candidate 1 has no "url"`,
		`[{"url":"b.example:8402","model":"m"}]`: `candidate 1: "url" is no provider's`, `[{"url":"https://u:secret@b.example","model":"m"}]`: `candidate 1: "url" is no provider's`,
		`[` + good + `{"url":"HTTPS://A.example.:0443/","model":"m"}]`: `serves "m" twice`, `[` + good + `{"url":"https://a.example:","model":"m"}]`: `serves "m" twice`,
		`[{"url":"http://[::1]:8","model":"m"},{"url":"http://[0:0::1]:8","model":"m"}]`: `serves "m" twice`, `[{"url":"https://b.example/?","model":"m"}]`: `"url" is no provider's`, `[{"url":"http://b.example:80/x","model":"m"},{"url":"http://B.example/x/","model":"m"}]`: `serves "m" twice`,
		`[` + good + `{"url":"https://a.example:80","model":"m"},7]`:      `candidate 3: "the entry"`,
		`[{"url":"https://b.example","model":7}]`:                         `candidate 1: "model" is a number, and has to be a string`,
		`[{"url":"https://b.example","model":"m","policies":"no-store"}]`: `candidate 1: "policies" is a string, and has to be a list`,
		`[{"url":"https://b.example","model":"m","prefill":"yes"}]`:       `candidate 1: "prefill" is a string, and has to be true or false`,
		`[{"url":"https://b.example","model":"m","prefill":1}]`:           `candidate 1: "prefill" is a number, and has to be true or false`,
		`[{"url":"https://b.example","model":"m","Prefill":true}]`:        `candidate 1: `,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := pool.File(file).Candidates(t.Context())
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), file) || strings.ContainsAny(err.Error(), "\n") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
	if err := os.WriteFile(file, []byte(`[`+good+`{"url":"https://a.example:80","model":"m"},{"url":"https://a.example/A","model":"m"},{"url":"https://a.example/a","model":"m"},{"url":"http://[fe80::1%25eth0]:8080/x","model":"m"},{"url":"http://%e4%bd%a0.example:8080/x","model":"m"}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := pool.File(file).Candidates(t.Context()); err != nil || len(list) != 6 {
		t.Errorf("they are six: %+v %v", list, err)
	}
	if err := os.WriteFile(file, []byte(`[`+good+`{"url":"https://b.example","model":"m","prefill":true}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	if list, err := pool.File(file).Candidates(t.Context()); err != nil || len(list) != 2 || list[0].Prefill || !list[1].Prefill {
		t.Errorf("%+v %v", list, err)
	}
}
