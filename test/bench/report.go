package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// line is one row of the table: a figure of mote, of the stock components, and the budget.
type line struct {
	what, budget string
	format       string // of one number, with its unit
	mote, stock  sample
	percentile   int
}

func (l line) cells() []string {
	cells := []string{l.what, fmt.Sprintf(l.format, l.mote.percentile(l.percentile)), l.mote.spread("%.0f"), "-", "", "-", l.budget}
	if len(l.stock) > 0 {
		cells[3] = fmt.Sprintf(l.format, l.stock.percentile(l.percentile))
		cells[4] = l.stock.spread("%.0f")
		cells[5] = fmt.Sprintf("%.2f", l.mote.percentile(l.percentile)/l.stock.percentile(l.percentile))
	}
	return cells
}

// report prints m, and also writes it to o.out if that is set.
func (o options) report(stdout io.Writer, m measured, took time.Duration) error {
	var text bytes.Buffer
	fmt.Fprint(&text, "# Benchmarks\n\nWritten by `scripts/bench`; run it to get your machine's. ",
		"How things are measured is in [test/bench](../test/bench/README.md).\n\n")
	if err := writeRun(&text, o.dir, o.commit, took); err != nil {
		return err
	}
	var cells [][]string
	for _, l := range o.lines(m) {
		if len(l.mote) > 0 {
			cells = append(cells, l.cells())
		}
	}
	writeTable(&text, []string{"what", "mote", "min - max", "stock parts", "min - max", "ratio", "budget"}, cells)
	o.writeProcesses(&text, m)
	o.writeWear(&text, m)
	if _, err := stdout.Write(text.Bytes()); err != nil {
		return err
	}
	if !o.write {
		return nil
	}
	return replaceSection(o.out, clustersHeading, text.String())
}

const (
	mib = 1 << 20
	mb  = 1e6
	day = 24 * time.Hour
)

func (o options) lines(m measured) []line {
	var lines []line
	add := func(what, budget, format string, percentile int, value func(result) sample, of map[string][]result) {
		l := line{what: what, budget: budget, format: format, percentile: percentile}
		for flavour, into := range map[string]*sample{"mote": &l.mote, "stock": &l.stock} {
			for _, r := range of[flavour] {
				*into = append(*into, value(r)...)
			}
		}
		lines = append(lines, l)
	}
	times := func(pick func(result) time.Duration) func(result) sample {
		return func(r result) sample { return milliseconds(pick(r)) }
	}
	if o.wants("start") {
		const ms = "%.0f ms"
		add("cold start to API ready", "1500 ms", ms, 50, times(func(r result) time.Duration { return r.APIReady }), m.starts)
		add("cold start to node Ready", "2500 ms", ms, 50, times(func(r result) time.Duration { return r.NodeReady }), m.starts)
		add("cold start to first pod Running", "4000 ms, DNS answering", ms, 50, times(func(r result) time.Duration { return r.FirstPod }), m.starts)
		add("CPU time until then", "", ms, 50, times(func(r result) time.Duration { return r.StartCPU }), m.starts)
		add("stop, with a pod running", "", ms, 50, times(func(r result) time.Duration { return r.Stop }), m.starts)
		add("warm restart to API ready", "", ms, 50, times(func(r result) time.Duration { return r.WarmAPI }), m.starts)
		add("warm restart to node Ready", "", ms, 50, times(func(r result) time.Duration { return r.WarmNode }), m.starts)
	}
	if o.wants("pods") {
		pods := func(r result) sample { return milliseconds(r.Pods...) }
		add("pod create to Running, p50", "400 ms", "%.0f ms", 50, pods, m.starts)
		add("pod create to Running, p90", "", "%.0f ms", 90, pods, m.starts)
	}
	idle := map[string][]result{}
	for flavour, r := range m.idle {
		idle[flavour] = []result{r}
	}
	if o.wants("memory") {
		const format = "%.0f MB"
		add("memory at idle, sum of PSS", "200 MB", format, 50, func(r result) sample { return total(r.Memory, mb).pss }, idle)
		add("of it anonymous", "120 MB", format, 50, func(r result) sample { return total(r.Memory, mb).anon }, idle)
		add("memory with 5 pods, sum of PSS", "", format, 50, func(r result) sample { return total(r.MemoryOfPods, mb).pss }, idle)
		add("of it anonymous", "", format, 50, func(r result) sample { return total(r.MemoryOfPods, mb).anon }, idle)
	}
	if o.wants("idle") {
		daily := func(bytes int64, over time.Duration) sample {
			return sample{float64(bytes) / mb * float64(day) / float64(over)}
		}
		add("idle CPU, of one core", "0.50 %", "%.2f %%", 50, func(r result) sample { return sample{r.Idle.percentOfCore()} }, idle)
		add("idle writes by processes, a day", "10 MB", "%.0f MB", 50, func(r result) sample { return daily(r.Idle.Written, r.Idle.Over) }, idle)
		add("idle writes to the device, a day", "", "%.0f MB", 50, func(r result) sample { return daily(r.Idle.Sectors, r.Idle.Over) }, idle)
	}
	if o.wants("run") {
		lines = append(lines, line{what: "`mote run -- kubectl get nodes`, prompt to prompt", budget: "6000 ms", format: "%.0f ms", percentile: 50, mote: milliseconds(m.runs...)})
	}
	return append(lines, m.sizes.lines()...)
}

func (s sizes) lines() []line {
	var lines []line
	for _, one := range []struct {
		what, budget string
		mote, stock  int64
	}{{"size of the shipped file, packed", "45.0 MiB", s.packed, 0}, {"unpacked", "", s.mote, s.stock}} {
		if one.mote == 0 {
			continue
		}
		l := line{what: one.what, budget: one.budget, format: "%.1f MiB", percentile: 50, mote: sample{float64(one.mote) / mib}}
		if one.stock > 0 {
			l.stock = sample{float64(one.stock) / mib}
		}
		lines = append(lines, l)
	}
	return lines
}

// percentOfCore returns all CPU time of u as a share of one core.
func (u usage) percentOfCore() float64 {
	var all time.Duration
	for _, t := range u.CPU {
		all += t
	}
	return 100 * float64(all) / float64(u.Over)
}

type memory struct{ pss, anon sample }

// total returns the sum of the processes' memory in the given unit.
func total(processes []process, unit float64) memory {
	var pss, anon int64
	for _, p := range processes {
		pss, anon = pss+p.PSS, anon+p.Anon
	}
	return memory{sample{float64(pss) / unit}, sample{float64(anon) / unit}}
}

// writeProcesses lists the processes behind the sums.
func (o options) writeProcesses(w io.Writer, m measured) {
	if !o.wants("memory", "idle") {
		return
	}
	for _, flavour := range o.flavours() {
		r := m.idle[flavour]
		fmt.Fprintf(w, "## Processes of %s\n\nAt idle after %s, and with %d pods. Bytes are in MB; the pods' own processes are not counted.\n\n",
			flavour, (o.settle + r.Idle.Over).Round(time.Second), idlePods)
		writeTable(w, []string{"process", "number", "PSS", "anonymous", "file", "CPU % of a core", "number with pods", "PSS", "anonymous"}, processCells(r))
	}
}

// writeWear lists the files behind the writes of an idle cluster.
func (o options) writeWear(w io.Writer, m measured) {
	if !o.wants("idle") {
		return
	}
	for _, flavour := range o.flavours() {
		u := m.idle[flavour].Idle
		fmt.Fprintf(w, "## What %s writes at idle\n\nIn %s, and scaled to a day.\n\n", flavour, u.Over.Round(time.Second))
		names := slices.SortedFunc(maps.Keys(u.Files), func(a, b string) int { return int(u.Files[b] - u.Files[a]) })
		var cells [][]string
		for _, name := range names[:min(len(names), wearRows)] {
			cells = append(cells, []string{name, fmt.Sprintf("%.0f kB", float64(u.Files[name])/1000),
				fmt.Sprintf("%.1f MB", float64(u.Files[name])/mb*float64(day)/float64(u.Over))})
		}
		writeTable(w, []string{"file", "bytes", "a day"}, cells)
	}
}

// wearRows is the number of files that are listed.
const wearRows = 12

func processCells(r result) [][]string {
	type sum struct {
		n               int
		pss, anon, file int64
	}
	add := func(all []process) (map[string]sum, []string) {
		sums, order := map[string]sum{}, []string{}
		for _, p := range all {
			s, seen := sums[p.Name]
			if !seen {
				order = append(order, p.Name)
			}
			sums[p.Name] = sum{s.n + 1, s.pss + p.PSS, s.anon + p.Anon, s.file + p.File}
		}
		return sums, order
	}
	idle, names := add(r.Memory)
	pods, order := add(r.MemoryOfPods)
	if len(order) == 0 {
		order = names // no pods were requested
	}
	size := func(bytes int64) string { return fmt.Sprintf("%.1f", float64(bytes)/mb) }
	var cells [][]string
	for _, name := range order {
		i, p := idle[name], pods[name]
		cpu := usage{Over: r.Idle.Over, CPU: map[string]time.Duration{name: r.Idle.CPU[name]}}
		cells = append(cells, []string{name, fmt.Sprint(i.n), size(i.pss), size(i.anon), size(i.file),
			fmt.Sprintf("%.2f", cpu.percentOfCore()), fmt.Sprint(p.n), size(p.pss), size(p.anon)})
	}
	return cells
}

// writeTable writes a Markdown table that is also readable as plain text.
func writeTable(w io.Writer, head []string, cells [][]string) {
	widths := make([]int, len(head))
	for _, row := range append([][]string{head}, cells...) {
		for i, cell := range row {
			widths[i] = max(widths[i], len(cell))
		}
	}
	row := func(cells []string) {
		for i, cell := range cells {
			fmt.Fprintf(w, "| %-*s ", widths[i], cell)
		}
		fmt.Fprintln(w, "|")
	}
	row(head)
	rule := make([]string, len(head))
	for i := range rule {
		rule[i] = strings.Repeat("-", max(3, widths[i]))
		widths[i] = max(3, widths[i])
	}
	row(rule)
	for _, one := range cells {
		row(one)
	}
	fmt.Fprintln(w)
}
