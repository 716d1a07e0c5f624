package checkpoint

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// contents is an open file of weights.
type contents interface {
	io.ReaderAt
	io.Closer
	// pieces calls f with the n bytes at off, piece by piece and in order. A piece is valid during the call alone; all but
	// the last are a multiple of eight bytes long.
	pieces(off, n int64, f func(piece []byte) error) error
}

// A piece of a megabyte is read and converted while it is in the processor's cache.
const pieceSize = 1 << 20

// streamed is a file that is read into a buffer.
type streamed struct{ *os.File }

var buffers = sync.Pool{New: func() any { return new([pieceSize]byte) }}

func (s streamed) pieces(off, n int64, f func([]byte) error) error {
	buffer := buffers.Get().(*[pieceSize]byte)
	defer buffers.Put(buffer)
	for n > 0 {
		piece := buffer[:min(n, pieceSize)]
		if got, err := s.ReadAt(piece, off); got < len(piece) {
			return fmt.Errorf("cannot read at byte %d: %w", off+int64(got), err)
		}
		if err := f(piece); err != nil {
			return err
		}
		off += int64(len(piece))
		n -= int64(len(piece))
	}
	return nil
}
