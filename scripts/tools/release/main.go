// Command release makes what a release of mote has beside its programs:
//
//	release licenses -arch ARCH [-library FILE]... -o FILE    the licence texts that mote embeds, compressed
//	release sbom -arch ARCH [-library FILE]... -program FILE -packed FILE -version V -date D -o FILE
//	release sign FILE                                         FILE.minisig, with the key of MOTE_RELEASE_KEY
//
// It runs in the root of the repository, called by scripts/build and scripts/release. Every part of
// mote must have a licence text that is recognised; a part without one is an error that names it.
package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

// options are the flags of all commands.
type options struct {
	arch      string
	libraries list
	out       string
	program   string
	packed    string
	version   string
	date      string
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

func (l *list) Set(value string) error {
	*l = append(*l, value)
	return nil
}

func run(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("usage: release licenses|sbom|sign")
	}
	var o options
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.StringVar(&o.arch, "arch", "", "GOARCH of the parts")
	flags.Var(&o.libraries, "library", "static C `library` of the payload, from a Debian package")
	flags.StringVar(&o.out, "o", "", "output `file`")
	flags.StringVar(&o.program, "program", "", "the mote program before packing")
	flags.StringVar(&o.packed, "packed", "", "the packed file, which is shipped")
	flags.StringVar(&o.version, "version", "", "version of mote")
	flags.StringVar(&o.date, "date", "", "date of the release, RFC 3339")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "licenses":
		return writeLicenses(o)
	case "sbom":
		return writeSBOM(o)
	case "sign":
		return sign(flags.Arg(0))
	}
	return fmt.Errorf("unknown command %s", args[0])
}
