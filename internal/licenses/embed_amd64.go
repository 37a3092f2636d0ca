package licenses

import "embed"

// The directory holds the compressed texts, or nothing when scripts/build-licenses has not run.
//
//go:embed all:files/amd64
var embedded embed.FS

const embeddedFile = "files/amd64/licenses.txt.zst"
