package tensorfile

import "bytes"

// Memory returns the contents of a file that is in memory. It is for tests.
func Memory(b []byte) Contents { return memory{bytes.NewReader(b)} }

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func (m memory) Pieces(off, n int64, f func([]byte) error) error {
	b := make([]byte, n)
	if _, err := m.ReadAt(b, off); err != nil && n > 0 {
		return err
	}
	return f(b)
}
