package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
)

// costPart measures the idle cost of the addons: a mote with all of them beside one without any.
func costPart() addonPart {
	return addonPart{name: "cost", outside: measureCost, figures: []addonFigure{
		{what: "memory at idle, sum of PSS; beside it without addons", format: "%.1f MB", mote: "pss", other: "pss without", percentile: 50, budget: 40, difference: true},
		{what: "of it anonymous", format: "%.1f MB", mote: "anonymous", other: "anonymous without", percentile: 50, difference: true},
		{what: "idle CPU, of one core", format: "%.2f %%", mote: "cpu", other: "cpu without", percentile: 50, budget: 0.1, difference: true},
		{what: "wake-ups at idle, a second", format: "%.1f", mote: "wakeups", other: "wakeups without", percentile: 50, difference: true},
	}}
}

// measureCost runs the two at the same time: other activity on the machine affects both alike.
// Pages of the file that both have mapped count half for each, and so not at all in the difference.
func measureCost(ctx context.Context, b *addonBench) (map[string]sample, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		running sync.WaitGroup
		mu      sync.Mutex // guards the variables below
		errs    []error
		seen    = map[string]sample{}
	)
	names, err := b.addonNames(ctx)
	if err != nil {
		return nil, err
	}
	for suffix, args := range map[string][]string{"": nil, " without": {"--disable=" + names}} {
		t, err := b.trial("mote")
		if err != nil {
			return nil, err
		}
		t.MoteArgs, t.OwnDisk, t.Settle, t.Idle = args, true, b.addonOptions.settle, b.addonOptions.idle
		running.Go(func() {
			r, err := b.isolate(ctx, t)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
				cancel()
				return
			}
			memory := total(r.Memory, mb)
			seen["pss"+suffix], seen["anonymous"+suffix] = memory.pss, memory.anon
			seen["cpu"+suffix] = sample{r.Idle.percentOfCore()}
			seen["wakeups"+suffix] = sample{float64(r.Idle.Wakeups) / r.Idle.Over.Seconds()}
		})
	}
	running.Wait()
	return seen, errors.Join(errs...)
}

// addonNames returns the addons that the help of --disable lists, joined by commas.
func (b *addonBench) addonNames(ctx context.Context) (string, error) {
	help, err := exec.CommandContext(ctx, b.addonOptions.mote, "server", "--help").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for the addons: %w", b.addonOptions.mote, err)
	}
	line := regexp.MustCompile(`--disable .*\(([a-z, ]+)\)`).FindSubmatch(help)
	if line == nil {
		return "", errors.New("the help of mote server lists no addons")
	}
	return strings.ReplaceAll(string(line[1]), " ", ""), nil
}
