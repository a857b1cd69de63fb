package sdk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/gpupay/gpupay/channel/store"
)

// openDatabase opens the database of one side and brings its tables up to
// date.
func openDatabase(ctx context.Context, path, side string, migrations fs.FS) (*store.DB, error) {
	db, err := store.Open(ctx, path)
	if err != nil {
		return nil, err
	}
	files, err := fs.Sub(migrations, "migrations/"+side)
	if err == nil {
		err = db.Migrate(ctx, side, files)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("database %s: %w", path, err), db.Close())
	}
	return db, nil
}
