package nvml_test

import (
	"context"
	"fmt"
	"log"

	"github.com/gpupay/gpupay/metering/nvml"
)

// The GPUs of this host, and its MIG slices, are listed and each is read once. It has no output to compare: where there is no driver,
// Open says so.
func ExampleOpen() {
	ctx := context.Background()
	source, err := nvml.Open(nvml.Options{})
	if err != nil {
		log.Fatal(err) // ErrLibrary: no driver here; ErrBuild: built without cgo
	}
	defer source.Close()
	devices, err := source.Devices(ctx)
	if err != nil {
		log.Fatal(err)
	}
	for _, d := range devices {
		reading, err := source.Read(ctx, d.UUID)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(d.UUID, d.Name, reading.Health, reading.Memory>>20, "of", d.MemoryBytes>>20, "MiB")
	}
}
