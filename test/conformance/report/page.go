package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	pageHead = `# Conformance

Upstream's conformance specs, run by ` + "`scripts/conformance`" + ` against ` + "`mote server`" + ` on a private host: its network
is a loopback, its images come from a registry on that loopback. The specs are e2e.test of the module that mote is built
from, unchanged. This page is generated; a run replaces its own row and section.

`
	tableHead = `| run | date | commit | specs | passed | failed | skipped | took | kube-proxy | cgroup | data directory on |
|---|---|---|---|---|---|---|---|---|---|---|
`
	keptHeading = "\n## What a run leaves in memory\n"
	kept        = keptHeading + `
Profiles of a run of all specs (November 2026, nftables; before and after, each behind a collection) say where memory went
that stayed. All of it is upstream's own, and is there on any cluster that saw as much:

| live heap, MB | more by | what |
|---|---|---|
| the API server's watch caches | 18 | recent events of each kind of object, until newer ones take their place |
| OpenAPI | 15 | documents that are made when a client first asks for them, and then kept |
| metrics | 8 | a series for each kind of object that ever was; custom resources of the specs are gone, their series stay |
| the rest | 16 | types that JSON has met, caches of clients, decoded objects |

Goroutines: 37 more of 4,822. They are informers of kinds that were deleted: the garbage collector and the quota controller take
theirs from a factory that cannot stop one. Each asks again with a growing pause. No descriptor stayed. Anonymous memory is more than the live heap by half for the garbage collector, and by stacks
and holes between objects.

## What a run leaves in the log

Specs delete pods, containers and namespaces all the time, and components of upstream log an error when that happens in the
midst of their work, although they handle it. [The log](reference/log.md) lists these lines with the reason for each, and
mote writes them at level debug. A line that repeats is written ten times, then once a minute. What stays is mostly what specs
do on purpose: images that no registry has, containers that cannot start, webhooks that refuse, names of runtimes that are not
there, and volumes of pods whose namespace is ending.
`
	runHeading    = "## Run "
	imagesHeading = "## Images\n\n"
	mostMessages  = 12
)

// Page makes the page from runs. It takes the rows and sections of other runs from the old page.
func Page(old string, runs []Run) string {
	rows, sections := runsOf(old)
	runs = slices.DeleteFunc(slices.Clone(runs), func(r Run) bool { return r.Partial })
	for _, r := range runs {
		rows[r.Name], sections[r.Name] = r.row(), r.section()
	}
	var b strings.Builder
	b.WriteString(pageHead + tableHead)
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		b.WriteString(rows[name])
	}
	for _, name := range slices.Sorted(maps.Keys(sections)) {
		b.WriteString("\n" + sections[name])
	}
	b.WriteString(kept)
	writeImages(&b, old, runs)
	return b.String()
}

// writeImages writes the table of images of the runs, or that of the old page if they have none.
func writeImages(b *strings.Builder, old string, runs []Run) {
	if len(runs) == 0 {
		_, table, _ := strings.Cut(old, imagesHeading)
		b.WriteString("\n" + imagesHeading + table)
		return
	}
	b.WriteString("\n" + imagesHeading + "Each has upstream's name and tags, and is made here.\n\n| image | made of |\n|---|---|\n")
	images := runs[len(runs)-1].Images
	for _, name := range slices.Sorted(maps.Keys(images)) {
		fmt.Fprintf(b, "| %s | %s |\n", name, images[name])
	}
}

// runsOf returns the rows and sections of a page by the names of their runs.
func runsOf(page string) (rows, sections map[string]string) {
	rows, sections = map[string]string{}, map[string]string{}
	head, rest, _ := strings.Cut(page, "\n"+runHeading)
	_, table, _ := strings.Cut(head, tableHead)
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			rows[strings.TrimSpace(cells[1])] = line
		}
	}
	rest, _, _ = strings.Cut(rest, keptHeading)
	for _, section := range strings.Split(rest, "\n"+runHeading) {
		if name, _, ok := strings.Cut(section, "\n"); ok {
			sections[name] = runHeading + section
		}
	}
	return rows, sections
}

func (r Run) row() string {
	return fmt.Sprintf("| %s | %s | %s | %d | %d | %d | %d | %v | %s | %s | %s |\n", r.Name, r.Date, r.Commit, len(r.Specs),
		r.count(Passed), r.count(Failed), r.count(Skipped), r.Took, r.Settings.Proxy, r.Settings.Cgroup, r.Settings.Data)
}

func (r Run) section() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s%s\n\n    %s\n\n", runHeading, r.Name, r.Command)
	fmt.Fprintf(&b, "Kubernetes %s, mote %s, Linux %s. %s\n", r.Settings.Kubernetes, r.Settings.Mote, r.Settings.Kernel, r.shares())
	r.writeFailures(&b)
	r.writeAgain(&b)
	r.writeUsage(&b)
	r.writeLog(&b)
	return b.String()
}

// shares returns how many specs of each kind passed.
func (r Run) shares() string {
	var all, good [2]int
	for _, spec := range r.Specs {
		kind := 0
		if spec.Serial {
			kind = 1
		}
		all[kind]++
		if spec.State == Passed {
			good[kind]++
		}
	}
	return fmt.Sprintf("%d of %d passed %d at a time, %d of %d one after another.", good[0], all[0], r.Procs, good[1], all[1])
}

func (r Run) writeFailures(b *strings.Builder) {
	first := true
	for _, spec := range r.Specs {
		if spec.State == Passed {
			continue
		}
		if first {
			b.WriteString("\n| not passed | how | why |\n|---|---|---|\n")
			first = false
		}
		reason := NeedsMore(spec.Name)
		if reason == "" {
			reason = spec.Reason
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", cell(spec.Name), spec.State, cell(reason))
	}
}

func (r Run) writeAgain(b *strings.Builder) {
	first := true
	for _, spec := range r.Specs {
		if spec.First == "" {
			continue
		}
		if first {
			b.WriteString("\n| ran again | then | at first |\n|---|---|---|\n")
			first = false
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", cell(spec.Name), spec.State, cell(spec.First))
	}
}

// cell makes a text fit into a table's cell.
func cell(text string) string {
	const longest = 240
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > longest {
		text = text[:longest] + " ..."
	}
	return strings.ReplaceAll(text, "|", "\\|")
}

func (r Run) writeUsage(b *strings.Builder) {
	if r.After == (Usage{}) {
		return
	}
	fmt.Fprintf(b, "\n| the process at idle | before | after |\n|---|---|---|\n")
	for _, line := range []struct {
		what          string
		before, after int
	}{
		{"anonymous memory, MB", r.Before.AnonymousMB, r.After.AnonymousMB},
		{"live heap, MB", r.Before.HeapMB, r.After.HeapMB},
		{"goroutines", r.Before.Goroutines, r.After.Goroutines},
		{"descriptors", r.Before.Descriptors, r.After.Descriptors},
	} {
		fmt.Fprintf(b, "| %s | %d | %d |\n", line.what, line.before, line.after)
	}
}

func (r Run) writeLog(b *strings.Builder) {
	if r.Log.Lines == 0 {
		return
	}
	fmt.Fprintf(b, "\nLog: %d lines (ERROR %d, WARN %d, INFO %d). Most frequent:\n\n| lines | level, component, message |\n|---|---|\n",
		r.Log.Lines, r.Log.Levels["ERROR"], r.Log.Levels["WARN"], r.Log.Levels["INFO"])
	kinds := slices.SortedFunc(maps.Keys(r.Log.Kinds), func(x, y string) int {
		if d := r.Log.Kinds[y] - r.Log.Kinds[x]; d != 0 {
			return d
		}
		return strings.Compare(x, y)
	})
	for _, kind := range kinds[:min(mostMessages, len(kinds))] {
		fmt.Fprintf(b, "| %d | %s |\n", r.Log.Kinds[kind], cell(kind))
	}
}

// Summary describes in one line how the run ended.
func (r Run) Summary() string {
	return fmt.Sprintf("%d specs in %v: %d passed, %d failed, %d skipped themselves",
		len(r.Specs), r.Took.Round(time.Second), r.count(Passed), r.count(Failed), r.count(Skipped))
}

// count counts the specs in a state. Every spec that neither passed nor skipped itself has failed:
// ginkgo has other states for it, such as panicked, interrupted and timedout.
func (r Run) count(state string) (n int) {
	for _, spec := range r.Specs {
		other := spec.State != Passed && spec.State != Skipped
		if spec.State == state || state == Failed && other {
			n++
		}
	}
	return n
}
