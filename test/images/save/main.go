// Command save writes one of the tests' images as an archive, for "mote run --image" and "mote image
// import":
//
//	go run ./test/images/save web web.tar
//
// The archive's suffix says how it is compressed: .tar, .tar.gz or .tar.zst. Run it from the
// repository's root.
package main

import (
	"fmt"
	"os"

	"github.com/mote-k8s/mote/test/images"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "save:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("want an image (busybox, csi, web) and a file, got %d arguments", len(args))
	}
	im, err := find(args[0])
	if err != nil {
		return err
	}
	return im.Save(args[1])
}

func find(name string) (images.Image, error) {
	switch name {
	case "busybox":
		return images.Busybox()
	case "csi":
		return images.Program(images.CSIName, ".", "./test/images/csi")
	case "web":
		return images.Program(images.WebName, ".", "./test/images/web")
	}
	return images.Image{}, fmt.Errorf("unknown image %q; there are busybox, csi and web", name)
}
