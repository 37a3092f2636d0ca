package agent

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxRunDir bounds the run directory in bytes. containerd's shims have sockets "sockets/s/" and 64 letters below it, and take
	// paths of 106 bytes (containerd's pkg/shim, socketPathLimit).
	maxRunDir = 106 - len("/sockets/s/") - 64
	// oddRunes have a meaning of their own where paths are written into one text: a colon separates the directories of an overlay
	// (containerd does not escape it, so no container has its files), a comma the options of a mount, a backslash
	// escapes both.
	oddRunes = `:,\`
	// oddInURLs have a meaning in URLs, as which the sockets in the run directory are given to clients, or in the words of a command.
	oddInURLs = "%?#&'\"$ "
)

// checkPaths refuses directories below which containers could not be started. The node would be ready all the same.
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

// oddRune returns the first part of a path that is one of odd, or cannot be printed.
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
