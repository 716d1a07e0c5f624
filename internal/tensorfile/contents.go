package tensorfile

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// Contents is an open file of tensors.
type Contents interface {
	io.ReaderAt
	io.Closer
	// Pieces calls f with the n bytes at off, piece by piece and in order. A piece is valid only during the call. All
	// pieces but the last have a multiple of eight bytes.
	Pieces(off, n int64, f func(piece []byte) error) error
}

// pieceSize is the size of a piece in bytes. A piece stays in the cache of the processor while it is read and converted.
const pieceSize = 1 << 20

// Streamed is a file that is read into a buffer.
type Streamed struct{ *os.File }

var buffers = sync.Pool{New: func() any { return new([pieceSize]byte) }}

// Pieces implements Contents.
func (s Streamed) Pieces(off, n int64, f func([]byte) error) error {
	buffer := buffers.Get().(*[pieceSize]byte)
	defer buffers.Put(buffer)
	for n > 0 {
		if err := operation("read", s.Name()); err != nil {
			return err
		}
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
