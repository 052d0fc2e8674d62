package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cpuTime is the CPU time of a process with all its threads, those that ended
// too, from the kernel's clock of that process: to the nanosecond, where
// /proc/PID/stat counts in hundredths of a second.
func cpuTime(pid int) (time.Duration, error) {
	var ts unix.Timespec
	clock := int32(^pid<<3 | 2) // CPUCLOCK_SCHED of pid, see clock_getcpuclockid(3)
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// cpuOf adds up the processes of a peer.
func cpuOf(pids []int) (time.Duration, error) {
	var sum time.Duration
	for _, pid := range pids {
		d, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// family gives a process and its children.
func family(pid int) ([]int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, fmt.Errorf("children of process %d: %w", pid, err)
	}
	all := []int{pid}
	for _, s := range strings.Fields(string(b)) {
		child, err := strconv.Atoi(s)
		if err != nil {
			return nil, fmt.Errorf("children of process %d: %w", pid, err)
		}
		all = append(all, child)
	}
	return all, nil
}
