package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestParseWear reads lines in the format of Linux 6.18.
func TestParseWear(t *testing.T) {
	const trace = `# tracer: nop
           <...>-9901    [000] ..... 22780.9: ext4_writepages_result: dev 7,0 ino 12 ret 0 pages_written 3 pages_skipped 0 sync_mode 1 writeback_index 5
           <...>-9901    [001] ..... 22781.9: ext4_writepages_result: dev 7,0 ino 12 ret 0 pages_written 1 pages_skipped 0 sync_mode 1 writeback_index 5
    kworker/u8:4-77      [001] ..... 22782.9: ext4_writepages_result: dev 7,0 ino 13 ret 0 pages_written 2 pages_skipped 0 sync_mode 0 writeback_index 0
    jbd2/loop0-8-9816    [001] ..... 22783.1: jbd2_run_stats: dev 7,0 tid 4 wait 0 request_delay 0 running 10 locked 0 flushing 0 logging 0 handle_count 9 blocks 4 blocks_logged 6
`
	inodes, journal, err := parseWear(strings.NewReader(trace))
	require.NoError(t, err)
	require.Equal(t, map[uint64]int64{12: 4 * 4096, 13: 2 * 4096}, inodes)
	require.EqualValues(t, 6*4096, journal)
}
