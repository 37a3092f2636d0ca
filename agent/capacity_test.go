package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestReserved(t *testing.T) {
	const gib = 1024 * mib
	for _, test := range []struct {
		name             string
		have             capacity
		cpu, memory, pid string // reserved
		leftMemory       string
		podPIDs          int64
	}{
		{"a board of 512 MiB", capacity{1, 512 * mib, 512 * mib, 3800, 3800}, "100m", "128Mi", "950", "384Mi", 950},
		{"1 GiB", capacity{1, gib, gib, 7600, 7600}, "100m", "256Mi", "1900", "768Mi", 1900},
		{"2 GiB", capacity{2, 2 * gib, 2 * gib, 15000, 15000}, "120m", "384Mi", "3750", "1664Mi", 3750},
		{"4 GiB", capacity{4, 4 * gib, 4 * gib, 32768, 32768}, "160m", "640Mi", "4096", "3456Mi", 4096},
		{"16 GiB", capacity{8, 16 * gib, 16 * gib, 4194304, 4194304}, "240m", "1254Mi", "4096", "15130Mi", 4096},
		{"64 GiB", capacity{64, 64 * gib, 64 * gib, 4194304, 4194304}, "1360m", "2237Mi", "4096", "63299Mi", 4096},
		// The memory that the container does not get is not for pods either.
		{"2 GiB and 3,000 processes for a container", capacity{8, 16 * gib, 2 * gib, 32768, 3000}, "240m", "14720Mi", "30518", "1664Mi", 750},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.have.systemReserved()
			for name, want := range map[string]string{"cpu": test.cpu, "memory": test.memory, "pid": test.pid} {
				wanted, reserved := resource.MustParse(want), resource.MustParse(got[name])
				require.Zero(t, wanted.Cmp(reserved), "%s: %s", name, &reserved)
			}
			reserved, left := resource.MustParse(got["memory"]), resource.MustParse(test.leftMemory)
			require.Equal(t, int64(test.have.memory), reserved.Value()+left.Value())
			require.Equal(t, test.podPIDs, test.have.podTasksLimit())
		})
	}
}

func TestCapacityOfThisMachine(t *testing.T) {
	c, err := detectCapacity()
	require.NoError(t, err)
	require.Positive(t, c.cpus)
	require.Greater(t, c.usable, uint64(64*mib))
	require.LessOrEqual(t, c.usable, c.memory)
	require.Greater(t, c.usableTasks, uint64(100))
	require.LessOrEqual(t, c.usableTasks, c.tasks)
}

func TestCgroupLimits(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600))
	}
	v1 := hierarchy{dir: dir, controllers: []string{"memory", "pids"}}
	v2 := hierarchy{dir: dir, controllers: []string{"memory", "pids"}, unified: true}

	memory, tasks, err := v2.limits()
	require.NoError(t, err, "the root of a machine has no files of limits")
	require.Greater(t, min(memory, tasks), uint64(1<<62))

	write("memory.max", "max")
	write("pids.max", "max")
	memory, tasks, err = v2.limits()
	require.NoError(t, err)
	require.Greater(t, min(memory, tasks), uint64(1<<62))

	write("memory.max", "2147483648")
	write("memory.limit_in_bytes", "1073741824")
	write("pids.max", "3000")
	memory, tasks, err = v2.limits()
	require.NoError(t, err)
	require.Equal(t, []uint64{2 << 30, 3000}, []uint64{memory, tasks})
	memory, tasks, err = v1.limits()
	require.NoError(t, err)
	require.Equal(t, []uint64{1 << 30, 3000}, []uint64{memory, tasks})

	write("pids.max", "many")
	_, _, err = v1.limits()
	require.ErrorContains(t, err, "pids.max")
}
