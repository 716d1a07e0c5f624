//go:build !unix

package tensorfile

// Other systems have no such flags, and no named pipes among files.
const (
	noFollow = 0
	nonBlock = 0
)
