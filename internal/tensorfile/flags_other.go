//go:build !unix

package tensorfile

import "os"

// Other systems have no such flags, and no named pipes among files.
const (
	noFollow = 0
	nonBlock = 0
)

// hasLinks reports whether a file has several names. Other systems do not say.
func hasLinks(os.FileInfo) bool { return false }
