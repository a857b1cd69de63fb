package fault

// Wall is the variable that names a file of eight bytes: by how many nanoseconds, in the
// machine's order, this process's wall clock is ahead of the host's. Who changes the file
// steps that clock, and no other: time.Since and all that waits goes on. It is read where
// the program is built with the tag faults, for linux/amd64.
const Wall = "GPUPAY_WALL_CLOCK"
