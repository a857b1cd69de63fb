package sim

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const (
	azure2023 = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\r\n2023-11-16 18:15:51.2225670,879,55\r\n"
	azure2024 = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01+00:00,2399,6\n"
	burst     = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,Conversation log\n45.5,ChatGPT,1087,230,1317,Conversation log\n60,GPT-4,5,0,5,API log\n118,GPT-4,417,276,693,Conversation log\n"
	reordered = "Log Type,Timestamp,Request tokens,Response tokens,Total tokens,Model\nAPI log,7.0,472.0,18.0,490.0,ChatGPT\n"
	moonLines = `{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
{"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1, 2]}

{"timestamp": 0, "input_length": 7319, "output_length": 490, "hash_ids": [0, 14]}
`
)

// TestTraces: lines as the three publications have them; in order, from 0, without what got no answer.
func TestTraces(t *testing.T) {
	ms := time.Millisecond
	for name, test := range map[string]struct {
		text string
		want []Arrival
	}{
		"azure 2023": {azure2023, []Arrival{{0, 374, 44}, {4314579 * time.Microsecond, 396, 109}, {4541977 * time.Microsecond, 879, 55}}},
		"azure 2024": {azure2024, []Arrival{{0, 2162, 5}, {990070 * time.Microsecond, 2399, 6}}},
		"burstgpt":   {burst, []Arrival{{0, 472, 18}, {40500 * ms, 1087, 230}, {113 * time.Second, 417, 276}}},
		"reordered":  {reordered, []Arrival{{0, 472, 18}}},
		"mooncake":   {moonLines, []Arrival{{0, 6755, 500}, {0, 7319, 490}, {27482 * ms, 6955, 52}}},
	} {
		path := filepath.Join(t.TempDir(), "trace")
		if err := os.WriteFile(path, []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadTrace(path); err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %v, %v; want %v", name, got, err, test.want)
		}
	}
	if _, err := ReadTrace(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	for name, text := range map[string]string{
		"empty": "", "no column": "a,b\n1,2\n", "no request": "TIMESTAMP,ContextTokens,GeneratedTokens\n",
		"no answers": "Timestamp,Request tokens,Response tokens\n1,2,0\n", "a time": strings.Replace(azure2023, "2023-11-16 ", "", 1),
		"a count": strings.Replace(burst, "472", "4.5", 1), "negative": strings.Replace(burst, "472", "-4", 1), "huge": strings.Replace(burst, "472", "1e300", 1),
		"not a number": strings.Replace(burst, "45.5", "NaN", 1), "ragged": azure2024 + "1,2\n", "json": `{"timestamp": "x"}`, "json, negative": `{"timestamp": -1, "output_length": 1}`,
	} {
		if list, err := Parse(strings.NewReader(text)); !errors.Is(err, ErrTrace) {
			t.Errorf("%s: %v, %v; want ErrTrace", name, list, err)
		}
	}
	if got := Played([]Arrival{{0, 1, 1}, {10 * time.Second, 1, 1}, {21 * time.Second, 1, 1}}, 2, 10*time.Second); len(got) != 2 || got[1].At != 5*time.Second {
		t.Errorf("at twice the speed: %v", got)
	}
}

// FuzzParse: whatever a file has, requests are in order, from 0, with an answer.
func FuzzParse(f *testing.F) {
	for _, text := range []string{azure2023, azure2024, burst, reordered, moonLines} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := Parse(strings.NewReader(string(text)))
		if (err == nil) != (len(list) > 0) || err != nil && !errors.Is(err, ErrTrace) {
			t.Fatalf("%d requests, %v", len(list), err)
		}
		for i, a := range list {
			if a.At < 0 || i == 0 && a.At != 0 || i > 0 && a.At < list[i-1].At || a.In < 0 || a.Out < 1 {
				t.Fatalf("request %d: %+v", i, a)
			}
		}
	})
}
