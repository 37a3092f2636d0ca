package main

import (
	"fmt"
	"io"
	"strings"
)

// barWidth is in characters: with the words beside it a line fits into 80 columns.
const barWidth = 30

// bar shows the progress of long work on a terminal. Elsewhere it prints each step once.
type bar struct {
	w        io.Writer
	terminal bool
	step     string
	percent  int64
}

func newBar(e *env) *bar { return &bar{w: e.stderr, terminal: isTerminal(e.stderr)} }

// show draws the bar if it has changed.
func (p *bar) show(step string, done, total int64) {
	percent := int64(100)
	if total > 0 {
		percent = done * 100 / total
	}
	switch {
	case step == p.step && percent == p.percent:
		return
	case !p.terminal && step != p.step:
		fmt.Fprintf(p.w, "%s: %d\n", step, total)
	case p.terminal && p.step != "" && step != p.step:
		fmt.Fprintln(p.w)
	}
	p.step, p.percent = step, percent
	if p.terminal {
		filled := int(percent) * barWidth / 100
		fmt.Fprintf(p.w, "\r   %-21s [%s%s] %3d %%", step, strings.Repeat("#", filled), strings.Repeat(" ", barWidth-filled), percent)
	}
}

// end ends the line of the bar.
func (p *bar) end() {
	if p.terminal && p.step != "" {
		fmt.Fprintln(p.w)
	}
}
