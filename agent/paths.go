package agent

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxRunDir is the limit of the run directory's length in bytes. containerd's shims have
	// sockets below it whose names are "sockets/s/" and 64 letters, and accept paths of 106 bytes
	// (containerd's pkg/shim, socketPathLimit).
	maxRunDir = 106 - len("/sockets/s/") - 64
	// oddRunes have a special meaning in a text that contains several paths. A colon separates the
	// directories of an overlay (containerd does not escape it, so containers would not find their
	// files). A comma separates the options of a mount. A backslash escapes both.
	oddRunes = `:,\`
	// oddInURLs have a special meaning in URLs or in the words of a command. Clients get the
	// sockets in the run directory as URLs.
	oddInURLs = "%?#&'\"$ "
)

// checkPaths refuses directories below which no container could start. A node with such a directory
// would become ready all the same.
func checkPaths(c Config) error {
	for _, dir := range []struct{ setting, path, odd string }{
		{"data-dir", c.DataDir, oddRunes}, {"run-dir", c.RunDir, oddRunes + oddInURLs}, {"kubelet-dir", c.KubeletDir, oddRunes},
	} {
		if odd, found := oddRune(dir.path, dir.odd); found {
			return fmt.Errorf("--%s %q has %q in it, with which no container can be started; choose another directory", dir.setting, dir.path, odd)
		}
	}
	if len(c.RunDir) > maxRunDir {
		return fmt.Errorf("--run-dir %s has %d bytes; choose a directory of %d at most, as the kernel bounds the paths of sockets below it",
			c.RunDir, len(c.RunDir), maxRunDir)
	}
	return nil
}

// oddRune returns the first character of path that is in odd or cannot be printed.
func oddRune(path, odd string) (string, bool) {
	for i, r := range path {
		if r == utf8.RuneError {
			return path[i : i+1], true
		}
		if strings.ContainsRune(odd, r) || !unicode.IsPrint(r) {
			return string(r), true
		}
	}
	return "", false
}
