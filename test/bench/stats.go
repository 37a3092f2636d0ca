package main

import (
	"fmt"
	"slices"
	"time"
)

// sample has all measurements of one figure, in one unit.
type sample []float64

func milliseconds(values ...time.Duration) sample {
	var s sample
	for _, v := range values {
		s = append(s, float64(v)/float64(time.Millisecond))
	}
	return s
}

// percentile returns the smallest value that p percent of the sample do not exceed.
func (s sample) percentile(p int) float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func (s sample) median() float64 { return s.percentile(50) }

// spread returns "min - max", or "" for a single value.
func (s sample) spread(format string) string {
	if len(s) < 2 {
		return ""
	}
	return fmt.Sprintf(format+" - "+format, slices.Min(s), slices.Max(s))
}
