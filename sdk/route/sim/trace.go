package sim

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrTrace says that a file is no trace of a known format.
var ErrTrace = errors.New("not a trace")

// mostArrivals is how many requests of a trace are read at most.
const mostArrivals = 5_000_000

// ReadTrace reads the requests of a public trace, in the order of time from 0. Requests without an answer are left out. The file is known by its header:
//
//	TIMESTAMP,ContextTokens,GeneratedTokens                                   the Azure LLM inference trace, of 2023 and of 2024
//	Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type      BurstGPT, in any order of columns
//	{"timestamp": 0, "input_length": 6755, "output_length": 500, ...}         Mooncake, a line a request
func ReadTrace(path string) ([]Arrival, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close() //nolint:errcheck // read only
	list, err := Parse(file)
	if err != nil {
		return nil, fmt.Errorf("trace %s: %w", filepath.Base(path), err)
	}
	return list, nil
}

// Parse is ReadTrace of what was opened.
func Parse(in io.Reader) ([]Arrival, error) {
	buffered := bufio.NewReaderSize(in, 1<<20)
	start, err := buffered.Peek(1)
	if err != nil {
		return nil, fmt.Errorf("%w: it is empty", ErrTrace)
	}
	var list []Arrival
	if start[0] == '{' {
		list, err = mooncake(buffered)
	} else {
		list, err = table(buffered)
	}
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: it has no request with an answer", ErrTrace)
	}
	slices.SortStableFunc(list, func(a, b Arrival) int { return int(max(min(a.At-b.At, 1), -1)) })
	for i, first := 0, list[0].At; i < len(list); i++ {
		list[i].At -= first
	}
	return list, nil
}

func mooncake(in io.Reader) ([]Arrival, error) {
	var list []Arrival
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 8<<20)
	for n := 1; lines.Scan(); n++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var line struct {
			Timestamp float64 `json:"timestamp"` // ms
			In        int64   `json:"input_length"`
			Out       int64   `json:"output_length"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrTrace, n, err)
		}
		at, err := moment(line.Timestamp / 1000)
		if err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrTrace, n, err)
		}
		if list, err = add(list, at, line.In, line.Out); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrTrace, n, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTrace, err)
	}
	return list, nil
}

// table reads either CSV. Columns are found by their names.
func table(in io.Reader) ([]Arrival, error) {
	rows := csv.NewReader(in)
	rows.ReuseRecord = true
	header, err := rows.Read()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTrace, err)
	}
	column := make(map[string]int)
	for i, name := range header {
		column[strings.ToLower(strings.TrimSpace(strings.TrimPrefix(name, "\ufeff")))] = i
	}
	at, timed := column["timestamp"]
	read, reads := column["contexttokens"]
	wrote, writes := column["generatedtokens"]
	when := wall
	if !reads && !writes {
		read, reads = column["request tokens"]
		wrote, writes = column["response tokens"]
		when = counted
	}
	if !timed || !reads || !writes {
		return nil, fmt.Errorf("%w: its columns are %.200q", ErrTrace, header)
	}
	var list []Arrival
	for n := 2; ; n++ {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrTrace, err)
		}
		moment, err1 := when(row[at])
		in, err2 := count(row[read])
		out, err3 := count(row[wrote])
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrTrace, n, err)
		}
		if list, err = add(list, moment, in, out); err != nil {
			return nil, fmt.Errorf("%w: line %d: %w", ErrTrace, n, err)
		}
	}
}

// wall is a time as Azure's traces have it, with or without an offset. Those without are of one zone.
func wall(text string) (time.Duration, error) {
	for _, layout := range []string{"2006-01-02 15:04:05.999999999", "2006-01-02 15:04:05.999999999-07:00"} {
		if t, err := time.Parse(layout, strings.TrimSpace(text)); err == nil {
			return t.Sub(time.Date(2023, 1, 1, 0, 0, 0, 0, time.UTC)), nil
		}
	}
	return 0, fmt.Errorf("%.40q is no time such as 2023-11-16 18:15:46.6805900", text)
}

// counted is a time in seconds.
func counted(text string) (time.Duration, error) {
	s, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil {
		return 0, err
	}
	return moment(s)
}

func moment(s float64) (time.Duration, error) {
	if math.IsNaN(s) || s < 0 || s > 1e9 {
		return 0, fmt.Errorf("%g seconds; from 0 to 1e9 can be read", s)
	}
	return lasts(s), nil
}

// count is a number of tokens; some tables write them as 472.0.
func count(text string) (int64, error) {
	n, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
	if err != nil || n != math.Trunc(n) || math.Abs(n) > 1e9 {
		return 0, fmt.Errorf("%.40q is no count of tokens", text)
	}
	return int64(n), nil
}

// mostTokens is the longest prompt or answer of a trace that is taken.
const mostTokens = 4_000_000

func add(list []Arrival, at time.Duration, in, out int64) ([]Arrival, error) {
	switch {
	case in < 0 || out < 0 || in > mostTokens || out > mostTokens:
		return nil, fmt.Errorf("%d and %d tokens; from 0 to %d can be read", in, out, mostTokens)
	case len(list) == mostArrivals:
		return nil, fmt.Errorf("more than %d requests", mostArrivals)
	case out == 0:
		return list, nil
	}
	return append(list, Arrival{At: at, In: in, Out: out}), nil
}

// Played is a trace at so many times its speed, up to so much time of the play.
func Played(list []Arrival, speed float64, span time.Duration) []Arrival {
	var played []Arrival
	for _, a := range list {
		if a.At = time.Duration(float64(a.At) / speed); a.At > span {
			break
		}
		played = append(played, a)
	}
	return played
}
