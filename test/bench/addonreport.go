package main

import (
	"bytes"
	"fmt"
	"io"
	"time"
)

func (b *addonBench) report(stdout io.Writer, took time.Duration) error {
	o := b.addonOptions
	var text bytes.Buffer
	fmt.Fprint(&text, addonsHeading, "\nWritten by `scripts/bench addons`; how things are measured is in [test/bench](../test/bench/README.md).\n\n")
	if err := writeRun(&text, o.dir, o.commit, took); err != nil {
		return err
	}
	var cells [][]string
	for _, part := range addonParts() {
		for _, f := range part.figures {
			if len(b.seen[f.mote]) > 0 {
				cells = append(cells, f.cells(b.seen))
			}
		}
	}
	writeTable(&text, []string{"what", "mote", "min - max", "beside it", "min - max", "compared", "budget"}, cells)
	if _, err := stdout.Write(text.Bytes()); err != nil || !o.write {
		return err
	}
	return replaceSection(o.out, addonsHeading, text.String())
}

func (f addonFigure) cells(seen map[string]sample) []string {
	mote, other := seen[f.mote], seen[f.other]
	value := mote.percentile(f.percentile)
	cells := []string{f.what, fmt.Sprintf(f.format, value), mote.spread("%.3g"), "-", "", "-", ""}
	if len(other) > 0 {
		beside := other.percentile(f.percentile)
		cells[3], cells[4] = fmt.Sprintf(f.format, beside), other.spread("%.3g")
		if f.difference {
			value -= beside
			cells[5] = fmt.Sprintf(f.format+" more", value)
		} else if beside != 0 {
			cells[5] = fmt.Sprintf("%.2f", value/beside)
			if f.relative {
				value /= beside
			}
		}
	}
	if f.budget > 0 {
		verdict := "met"
		if f.atLeast && value < f.budget || !f.atLeast && value > f.budget {
			verdict = "missed"
		}
		format := f.format
		if f.relative {
			format = "%.2g of it"
		}
		cells[6] = fmt.Sprintf(format+": %s", f.budget, verdict)
	}
	return cells
}
