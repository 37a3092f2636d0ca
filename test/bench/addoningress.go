package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// ingressPart compares the ingress with nginx as a proxy in front of the same backend.
func ingressPart() addonPart {
	var figures []addonFigure
	for _, size := range []string{"128", "2048"} {
		figures = append(figures,
			addonFigure{
				what: "ingress, answers of " + size + " bytes; beside it nginx", format: "%.0f requests a second",
				mote: "mote requests " + size, other: "nginx requests " + size, percentile: 50, budget: 0.5, atLeast: true, relative: true,
			},
			addonFigure{
				what: "processor time of one", format: "%.0f µs", mote: "mote cpu " + size, other: "nginx cpu " + size, percentile: 50,
			})
	}
	return addonPart{name: "ingress", outside: measureIngress, figures: figures}
}

// ingressLine matches a result of the benchmark, with the figures behind it.
var ingressLine = regexp.MustCompile(`(?m)^BenchmarkNginx/(\d+)_bytes\S*\s+1\s+(.*)$`)

func measureIngress(ctx context.Context, b *addonBench) (map[string]sample, error) {
	out, err := exec.CommandContext(ctx, b.program("ingress"), "-test.run=^$", "-test.bench=^BenchmarkNginx$",
		"-test.benchtime=1x", fmt.Sprintf("-test.count=%d", min(b.rounds, 3))).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("run the ingress' benchmark: %w: %s", err, strings.TrimSpace(string(out)))
	}
	seen := map[string]sample{}
	for _, match := range ingressLine.FindAllStringSubmatch(string(out), -1) {
		figures := strings.Fields(match[2]) // a value, its unit, and so on
		for i := 0; i+1 < len(figures); i += 2 {
			for unit, what := range map[string]string{"-requests/s": " requests ", "-cpu-µs/request": " cpu "} {
				if who, ok := strings.CutSuffix(figures[i+1], unit); ok {
					value, err := strconv.ParseFloat(figures[i], 64)
					if err != nil {
						return nil, err
					}
					seen[who+what+match[1]] = append(seen[who+what+match[1]], value)
				}
			}
		}
	}
	if len(seen) == 0 {
		return nil, fmt.Errorf("the ingress' benchmark has no results: %s", strings.TrimSpace(string(out)))
	}
	return seen, nil
}
