package payload

import "embed"

// The directory holds an archive and its manifest, or nothing if scripts/build-payload has not run.
//
//go:embed all:files/amd64
var embedded embed.FS

const embeddedDir = "files/amd64"
