package onchain

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/ethereum/go-ethereum/common/hexutil"
)

const (
	sources    = "contracts/src"
	escrowFile = "ChannelEscrow.sol"
)

// A patch changes the one place in a file of the contract's source that reads old.
type patch struct{ file, old, new string }

// compile compiles the escrow once for each set of patches, with the project's own settings, and returns creation codes.
func compile(ctx context.Context, root string, sets [][]patch) ([]hexutil.Bytes, error) {
	dir, err := os.MkdirTemp("", "gpupay-variants-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := borrow(root, dir); err != nil {
		return nil, err
	}
	for i, patches := range sets {
		if err := write(filepath.Join(root, sources), filepath.Join(dir, sources, variant(i)), variant(i), patches); err != nil {
			return nil, err
		}
	}
	found, err := filepath.Glob(filepath.Join(root, "node_modules", "@foundry-rs", "forge-*", "bin", "forge*"))
	if err != nil || len(found) == 0 {
		return nil, fmt.Errorf("forge is not installed in %s/node_modules: run `npm ci` first", root)
	}
	forge := exec.CommandContext(ctx, found[0], "build", "--quiet")
	forge.Dir = dir
	if out, err := forge.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compiling variants of the escrow: %w\n%s", err, out)
	}
	codes := make([]hexutil.Bytes, len(sets))
	for i := range sets {
		if codes[i], err = creationCode(filepath.Join(dir, "out", variant(i)+".sol", variant(i)+".json")); err != nil {
			return nil, err
		}
	}
	return codes, nil
}

func variant(i int) string { return fmt.Sprintf("Variant%d", i) }

// borrow makes dir a project of forge's, with the settings, the compiler and the packages of the one at root.
func borrow(root, dir string) error {
	if err := os.MkdirAll(filepath.Join(dir, sources), 0o755); err != nil {
		return err
	}
	for _, shared := range []string{"foundry.toml", "node_modules", "contracts/tools"} {
		if err := os.Symlink(filepath.Join(root, shared), filepath.Join(dir, shared)); err != nil {
			return err
		}
	}
	return nil
}

// write copies the contract's source, patched, and names the contract, which forge wants to be one of a kind.
func write(from, to, name string, patches []patch) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	patches = append([]patch{{escrowFile, "\ncontract ChannelEscrow is ", "\ncontract " + name + " is "}}, patches...)
	files, err := filepath.Glob(filepath.Join(from, "*.sol"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		base := filepath.Base(file)
		patched, err := apply(string(text), base, patches)
		if err != nil {
			return err
		}
		if base == escrowFile {
			base = name + ".sol"
		}
		if err := os.WriteFile(filepath.Join(to, base), []byte(patched), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func apply(text, file string, patches []patch) (string, error) {
	for _, p := range patches {
		if p.file != file {
			continue
		}
		if n := strings.Count(text, p.old); n != 1 {
			return "", fmt.Errorf("a variant changes what is %d times in %s, not once: %q", n, file, p.old)
		}
		text = strings.Replace(text, p.old, p.new, 1)
	}
	return text, nil
}

func creationCode(artifact string) (hexutil.Bytes, error) {
	text, err := os.ReadFile(artifact)
	if err != nil {
		return nil, err
	}
	var a struct {
		Bytecode struct{ Object hexutil.Bytes }
	}
	if err := json.Unmarshal(text, &a); err != nil {
		return nil, fmt.Errorf("%s: %w", artifact, err)
	}
	return a.Bytecode.Object, nil
}
