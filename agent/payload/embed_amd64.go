package payload

import "embed"

// The folder holds an archive and its manifest, or nothing when scripts/build-payload has not run.
//
//go:embed all:files/amd64
var embedded embed.FS

const embeddedDir = "files/amd64"
