package doctor

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gpupay/gpupay/channel/store"
	"github.com/gpupay/gpupay/internal/redact"
	"github.com/gpupay/gpupay/metering"
	"github.com/gpupay/gpupay/sdk/internal/database"
	"github.com/gpupay/gpupay/sdk/internal/leasestore"
)

// database looks whether vouchers can be kept: that what is written is on disk when that is said, and that what is there is a
// provider's.
func (c *Config) database(ctx context.Context) []Finding {
	switch {
	case c.Database == "":
		return nil
	case strings.Contains(c.Database, "://"):
		return c.server(ctx)
	}
	folder := filepath.Dir(c.Database)
	if err := synced(folder); err != nil {
		return mend("database", "%s cannot be written and synced: %s: make it, give it to this user, or name another --db", folder, err)
	}
	file, err := os.OpenFile(c.Database, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return ok("database", "%s is not there yet, and can be: its folder is written and synced", c.Database)
	}
	if err != nil {
		return mend("database", "%s: give it to the user that serves", err)
	}
	info, err := file.Stat()
	if err = errors.Join(err, file.Close()); err != nil {
		return mend("database", "%s", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return mend("database", "%s can be read by others (%s): chmod 600 it, it holds what renters get their GPUs by", c.Database, info.Mode().Perm())
	}
	return c.reads(ctx)
}

// reads looks at the tables, beside the program that may run on them.
func (c *Config) reads(ctx context.Context) []Finding {
	db, err := database.Read(ctx, c.Database, map[string]fs.FS{"provider": leasestore.Migrations})
	if errors.Is(err, store.ErrOlder) {
		return ok("database", "%s is of an older version: `serve` brings it up to date", redact.Database(c.Database))
	}
	if err != nil {
		return mend("database", "%s", strings.TrimPrefix(err.Error(), "database: "))
	}
	if err := db.Close(); err != nil {
		return mend("database", "%s", err)
	}
	return ok("database", "%s is a provider's, written and synced", redact.Database(c.Database))
}

// synced writes a file into a folder, has it synced, and deletes it.
func synced(folder string) error {
	file, err := os.CreateTemp(folder, ".gpupay-doctor-")
	if err != nil {
		return err
	}
	_, err = file.WriteString("gpupay doctor")
	return errors.Join(err, file.Sync(), file.Close(), os.Remove(file.Name()))
}

// server looks at a PostgreSQL: that it takes writes, and that a commit is on its disk.
func (c *Config) server(ctx context.Context) []Finding {
	name := redact.Database(c.Database)
	db, err := sql.Open("pgx", c.Database)
	if err != nil {
		return mend("database", "%s is no address of a PostgreSQL", name)
	}
	defer db.Close()
	for _, setting := range []struct{ name, want, do string }{
		{"transaction_read_only", "off", "it takes no writes: name the primary, not a standby"},
		{"fsync", "on", "a voucher that was acknowledged would be lost with its power: set fsync = on"},
		{"synchronous_commit", "on local remote_write remote_apply", "a voucher that was acknowledged may be lost: set synchronous_commit = on"},
	} {
		var is string
		if err := db.QueryRowContext(ctx, `SELECT current_setting('`+setting.name+`')`).Scan(&is); err != nil {
			return mend("database", "%s does not answer: %s", name, redact.Text(err.Error()))
		}
		if !strings.Contains(" "+setting.want+" ", " "+is+" ") {
			return mend("database", "%s: %s is %s: %s", name, setting.name, is, setting.do)
		}
	}
	return ok("database", "%s takes writes, and syncs them", name)
}

// gpus looks at the devices, and whether each can be read.
func (c *Config) gpus(ctx context.Context) []Finding {
	if c.Open == nil {
		return nil
	}
	source, err := c.Open()
	if err != nil {
		return mend("gpus", "%s", err)
	}
	defer source.Close()
	devices, err := source.Devices(ctx)
	if err != nil || len(devices) == 0 {
		return mend("gpus", "%s lists no GPU: %v: look at nvidia-smi, and at the driver", source.Name(), cmp.Or(err, errors.New("there is none")))
	}
	names := make(map[string]int)
	simulated := false
	for _, d := range devices {
		reading, err := source.Read(ctx, d.UUID)
		if err != nil || reading.Health != metering.Healthy {
			return mend("gpus", "GPU %s (%s) cannot be metered (%s, %v): look at nvidia-smi, and reset it", d.UUID, d.Name, reading.Health, err)
		}
		names[d.Name]++
		simulated = simulated || d.Simulated
	}
	seen := fmt.Sprintf("driver %s, NVML %s", devices[0].Driver, devices[0].NVML)
	if simulated {
		seen = "THEY ARE SIMULATED: nobody should pay real money for them"
	}
	return ok("gpus", "%s; %s", counted(names), seen)
}

func counted(names map[string]int) string {
	var all []string
	for name, n := range names {
		all = append(all, fmt.Sprintf("%d %s", n, name))
	}
	return strings.Join(sorted(all), ", ")
}
