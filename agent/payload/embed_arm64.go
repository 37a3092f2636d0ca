package payload

import "embed"

// The folder holds an archive and its manifest, or nothing when scripts/build-payload has not run.
//
//go:embed all:files/arm64
var embedded embed.FS

const embeddedDir = "files/arm64"
