// Command save writes one of the tests' images as an archive, for "mote run --image" and "mote
// image import":
//
//	go run ./test/images/save web web.tar
//
// The archive's suffix selects the compression: .tar, .tar.gz or .tar.zst. Run it from the
// repository's root.
package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/mote-k8s/mote/test/images"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "save:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	known := makers()
	if len(args) != 2 {
		return fmt.Errorf("want an image (%s) and a file, got %d arguments", names(known), len(args))
	}
	makeImage, ok := known[args[0]]
	if !ok {
		return fmt.Errorf("unknown image %q; there are %s", args[0], names(known))
	}
	im, err := makeImage()
	if err != nil {
		return err
	}
	return im.Save(args[1])
}

func names(known map[string]func() (images.Image, error)) string {
	return strings.Join(slices.Sorted(maps.Keys(known)), ", ")
}

func makers() map[string]func() (images.Image, error) {
	program := func(name, pkg string) func() (images.Image, error) {
		return func() (images.Image, error) { return images.Program(name, ".", pkg) }
	}
	return map[string]func() (images.Image, error){
		"busybox":    images.Busybox,
		"tools":      images.Tools,
		"redis":      images.Redis,
		"python":     images.Python,
		"prometheus": images.Prometheus,
		"influxdb":   images.InfluxDB,
		"rsyslog":    images.Rsyslog,
		"client":     program(images.ClientName, "./test/images/client"),
		"csi":        program(images.CSIName, "./test/images/csi"),
		"web":        program(images.WebName, "./test/images/web"),
		"guestbook":  program(images.GuestbookName, "./test/images/guestbook"),
		"kuard": func() (images.Image, error) {
			im, err := images.Program(images.KuardName, ".", "./test/images/kuard")
			if err != nil {
				return im, err
			}
			return images.WithShell(im)
		},
	}
}
