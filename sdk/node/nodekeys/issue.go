package nodekeys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// Issue makes certificates for nodes in the folder of an authority, dir/nodes/NAME, and for their gateways, dir/gateway, where
// there is none. It returns the folders that it made, also beside an error.
func Issue(dir string, names []string) (made []string, err error) {
	ca, err := OpenCA(dir)
	if err != nil {
		return nil, err
	}
	write := func(name string, identity Identity, err error) error {
		folder := filepath.Join(dir, name)
		if err == nil {
			err = identity.Write(folder)
		}
		if err == nil {
			made = append(made, folder)
		}
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "gateway")); errors.Is(err, fs.ErrNotExist) {
		gateway, err := ca.Gateway()
		if err := write("gateway", gateway, err); err != nil {
			return made, err
		}
	}
	for _, name := range names {
		node, err := ca.Node(name)
		if err := write(filepath.Join("nodes", name), node, err); err != nil {
			return made, err
		}
	}
	return made, nil
}
