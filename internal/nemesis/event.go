package nemesis

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Event is one command that was run on devices, as the devices saw it. The events of
// a run are in the order in which they took effect.
type Event struct {
	At      int64    `json:"at"` // unix nanoseconds
	Verb    string   `json:"verb"`
	Lease   string   `json:"lease"`
	Term    int64    `json:"term"` // fencing token
	Devices []string `json:"devices"`
	Fenced  bool     `json:"fenced"` // its term was lower than one that was seen: it did nothing
	Parent  int      `json:"parent"` // process that ran it
}

// Command is what the hooks of gateways and nodes run: it obeys the fencing token as
// docs/replicas.md wants it, and writes down what was done.
func Command(dir, verb string) error {
	_ = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: ^uint64(0), Max: ^uint64(0)}) // a full disk is our parent's
	events, err := os.OpenFile(filepath.Join(dir, "events"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer events.Close()
	if err := syscall.Flock(int(events.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	e := Event{At: time.Now().UnixNano(), Verb: verb, Lease: os.Getenv("GPUPAY_LEASE"), Parent: os.Getppid(),
		Devices: strings.FieldsFunc(os.Getenv("NVIDIA_VISIBLE_DEVICES"), func(r rune) bool { return r == ',' })}
	if e.Term, err = strconv.ParseInt(os.Getenv("GPUPAY_TERM"), 10, 64); err != nil {
		return fmt.Errorf("GPUPAY_TERM: %w", err)
	}
	if e.Fenced, err = fenced(filepath.Join(dir, e.Lease), e.Term); err != nil {
		return err
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = events.Write(append(line, '\n'))
	return err
}

// fenced reports whether a lease has seen a higher term, and keeps the highest.
func fenced(path string, term int64) (bool, error) {
	before, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		return false, err
	}
	if highest, err := strconv.ParseInt(string(before), 10, 64); err == nil && term < highest {
		return true, nil
	}
	return false, os.WriteFile(path, strconv.AppendInt(nil, term, 10), 0o600)
}

// Events reads what was done.
func Events(dir string) ([]Event, error) {
	text, err := os.ReadFile(filepath.Join(dir, "events"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	var all []Event
	for line := range strings.Lines(string(text)) {
		var e Event
		if !strings.HasSuffix(line, "\n") {
			break // it is being written
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}
