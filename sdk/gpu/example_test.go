package gpu_test

import (
	"context"
	"fmt"

	"github.com/ethereum/go-ethereum/common"

	"github.com/gpupay/gpupay/metering/sim"
	"github.com/gpupay/gpupay/sdk/gpu"
)

// Two simulated GPUs are rented out by commands: what the first one prints is
// how the renter reaches its GPU.
func ExampleHostAllocator() {
	ctx := context.Background()
	host, err := gpu.NewHostAllocator(ctx, sim.New(2, sim.Options{}))
	if err != nil {
		fmt.Println(err)
		return
	}
	host.AllocateCommand = []string{"sh", "-c", `echo "{\"ssh\":\"$NVIDIA_VISIBLE_DEVICES@gpus.example.org\"}"`}
	lease, err := host.Allocate(ctx, gpu.Request{LeaseID: common.Hash{1}, GPUs: 1})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(string(lease.Access), "free:", host.Free())
	fmt.Println(host.Release(ctx, lease), "free:", host.Free())
	// Output:
	// {"ssh":"SIM-GPU-0@gpus.example.org"} free: 1
	// <nil> free: 2
}
