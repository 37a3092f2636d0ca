package main

import "testing"

func TestPercentile(t *testing.T) {
	ten := sample{10, 9, 8, 7, 6, 5, 4, 3, 2, 1}
	for _, c := range []struct {
		in   sample
		p    int
		want float64
	}{
		{ten, 50, 5}, {ten, 90, 9}, {ten, 100, 10}, {ten, 1, 1},
		{sample{7}, 50, 7}, {sample{7}, 90, 7}, {nil, 50, 0},
		{sample{3, 1, 2}, 50, 2},
	} {
		if got := c.in.percentile(c.p); got != c.want {
			t.Errorf("percentile %d of %v = %v, want %v", c.p, c.in, got, c.want)
		}
	}
}
