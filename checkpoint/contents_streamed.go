//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package checkpoint

import "os"

// openContents takes the file over.
func openContents(f *os.File, _ int64) contents { return streamed{f} }
