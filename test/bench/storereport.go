package main

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"time"
)

func (b *storeBench) report(stdout io.Writer, took time.Duration) error {
	var text bytes.Buffer
	fmt.Fprint(&text, storeHeading, "\nWritten by `scripts/bench datastore`; how things are measured is in [test/bench](../test/bench/README.md).\n\n")
	if err := writeRun(&text, b.dir, b.commit, took); err != nil {
		return err
	}
	b.writeRequests(&text)
	b.writeCosts(&text)
	b.writeRest(&text)
	b.writeGrowth(&text)
	if _, err := stdout.Write(text.Bytes()); err != nil {
		return err
	}
	if !b.write {
		return nil
	}
	return replaceSection(b.out, storeHeading, text.String())
}

// of returns the sample of a figure over an engine's trials.
func (r *requestResult) of(engine string, value func(trialOfRequests) float64) sample {
	var s sample
	for _, t := range r.trials[engine] {
		s = append(s, value(t))
	}
	return s
}

func (r *requestResult) name() string {
	if r.clients == 1 {
		return r.what + ", 1 client"
	}
	return fmt.Sprintf("%s, %d clients", r.what, r.clients)
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// times returns an engine's figure as a multiple of mote's: the median of the rounds' ratios, since
// rounds differ more than engines do.
func (r *requestResult) times(engine string, value func(trialOfRequests) float64) float64 {
	own, other := r.of("mote", value), r.of(engine, value)
	var ratios sample
	for i := range min(len(own), len(other)) {
		if own[i] > 0 {
			ratios = append(ratios, other[i]/own[i])
		}
	}
	return ratios.median()
}

// verdict returns whether a ratio reaches its target, as a text.
func verdict(ratio, target float64) string {
	switch {
	case ratio == 0:
		return "-"
	case target == 0:
		return fmt.Sprintf("%.2f", ratio)
	case ratio >= target:
		return fmt.Sprintf("%.2f (target %g: met)", ratio, target)
	default:
		return fmt.Sprintf("%.2f (target %g: missed)", ratio, target)
	}
}

func (b *storeBench) writeRequests(w io.Writer) {
	fmt.Fprintf(w, "### Requests\n\nTime of all requests over their number, median of %d rounds, in µs; %d keys of %d bytes. "+
		"Ratios are the other's time over mote's: above 1 mote is faster.\n\n", b.rounds, requestKeys, valueSize)
	each := func(t trialOfRequests) float64 { return microseconds(t.each) }
	var cells [][]string
	for _, r := range b.requests {
		row := []string{r.name()}
		for _, e := range []string{"mote", "etcd", "kine"} {
			row = append(row, fmt.Sprintf("%.0f", r.of(e, each).median()))
		}
		cells = append(cells, append(row, verdict(r.times("etcd", each), r.etcd), verdict(r.times("kine", each), r.kine)))
	}
	writeTable(w, []string{"request", "mote", "etcd", "kine", "etcd / mote", "kine / mote"}, cells)

	fmt.Fprint(w, "### Watch\n\nFrom sending a write to its event at a watch of all keys, in ms, over all rounds.\n\n")
	cells = nil
	for _, r := range b.requests {
		if !r.writes || r.what == "delete" {
			continue
		}
		for _, p := range []int{50, 99} {
			age := func(t trialOfRequests) float64 { return milliseconds(t.ages...).percentile(p) }
			row := []string{fmt.Sprintf("%s, p%d", r.name(), p)}
			for _, e := range []string{"mote", "etcd", "kine"} {
				row = append(row, fmt.Sprintf("%.2f", r.of(e, age).median()))
			}
			cells = append(cells, append(row, verdict(r.times("etcd", age), 1), verdict(r.times("kine", age), 0)))
		}
	}
	writeTable(w, []string{"event of", "mote", "etcd", "kine", "etcd / mote", "kine / mote"}, cells)
}

// writeCosts writes the cost of a request for the machine.
func (b *storeBench) writeCosts(w io.Writer) {
	fmt.Fprint(w, "### Cost of a request\n\nProcessor time of the server in µs, and what it wrote to the disk in kB, for each request; medians.\n\n")
	var cells [][]string
	for _, r := range b.requests {
		row := []string{r.name()}
		for _, e := range []string{"mote", "etcd", "kine"} {
			row = append(row, fmt.Sprintf("%.0f", r.of(e, func(t trialOfRequests) float64 { return microseconds(t.cpu) }).median()))
		}
		for _, e := range []string{"mote", "etcd", "kine"} {
			row = append(row, fmt.Sprintf("%.1f", r.of(e, func(t trialOfRequests) float64 { return t.written / 1000 }).median()))
		}
		cells = append(cells, row)
	}
	writeTable(w, []string{"request", "mote µs", "etcd µs", "kine µs", "mote kB", "etcd kB", "kine kB"}, cells)
}

func (b *storeBench) writeGrowth(w io.Writer) {
	if len(b.growth) == 0 {
		return
	}
	fmt.Fprintf(w, "### Growth\n\nTimes in µs; creates are by %d clients, updates by %d, the rest by one. Start is from exec to the first answer, in ms. "+
		"Memory is PSS over an empty store, and its anonymous part, in MB: after the writes, and after a restart and a list of everything. The rest is mapped files. "+
		"Written is for each create, disk for each key at the end, in kB.\n\n", loaders, many)
	var cells [][]string
	for _, r := range b.growth {
		us := func(d time.Duration) string { return fmt.Sprintf("%.0f", microseconds(d)) }
		cells = append(cells, []string{fmt.Sprint(r.keys), fmt.Sprintf("%.1f kB", float64(r.size)/1000), r.engine,
			us(r.create), us(r.update), us(r.get), us(r.list), us(r.count), fmt.Sprintf("%.0f", float64(r.startup)/float64(time.Millisecond)),
			r.full.String(), r.read.String(),
			fmt.Sprintf("%.1f", r.written/1000), fmt.Sprintf("%.1f", r.disk/1000/float64(r.keys))})
	}
	writeTable(w, []string{"keys", "of", "engine", "create", "update", "get", "list", "count", "start", "memory", "after a restart", "written", "disk"}, cells)
	for _, limit := range b.beyond {
		fmt.Fprintf(w, "Not to be measured: %s.\n\n", limit)
	}
	own := slices.IndexFunc(b.growth, func(r growthResult) bool { return r.engine == "mote" && r.keys == requestKeys && r.size == valueSize })
	large := slices.IndexFunc(b.growth, func(r growthResult) bool { return r.engine == "mote" && r.keys == 100_000 })
	if own >= 0 && large >= 0 {
		fmt.Fprintf(w, "Targets: start with 100,000 keys at most 1 s: %.0f ms. Memory at 10,000 keys of 2 kB at most 15 MB over an empty store: %s MB after the writes.\n\n",
			float64(b.growth[large].startup)/float64(time.Millisecond), b.growth[own].full)
	}
}
