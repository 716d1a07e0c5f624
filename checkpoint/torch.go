package checkpoint

import (
	"archive/zip"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/gomamba/mamba/internal/tensorfile"
)

// maxDirectory and maxPickle are the largest sizes in bytes of the directory of a zip file and of the pickle in it. The largest
// published Mamba needs a hundredth of them.
const (
	maxDirectory = 4 << 20
	maxPickle    = 4 << 20
)

// readTorch returns the tensors of a file that torch.save wrote. Such a file is a zip file without compression. It contains a pickle,
// which describes the tensors, and for each storage a file of its elements.
//
// An unpickler of our own reads the pickle as data. The elements stay in the file. The library github.com/nlpodyssey/gopickle v0.3.0
// cannot do this: it reads every storage into memory, which makes a second copy of the model, and it allocates the sizes that a pickle
// claims before it compares them with the file.
func readTorch(c tensorfile.Contents, size int64) ([]*tensorfile.Tensor, error) {
	return readTorchWith(c, size, maxPickle, unpickle)
}

// readReleased is readTorch for a file of a training run. from is the name of the dictionary with the weights, or "".
func readReleased(c tensorfile.Contents, size int64, from string) ([]*tensorfile.Tensor, error) {
	return readTorchWith(c, size, maxReleased, func(text []byte, objects int64) ([]view, error) { return unpickleReleased(text, objects, from) })
}

func readTorchWith(c tensorfile.Contents, size, limit int64, read func(text []byte, objects int64) ([]view, error)) ([]*tensorfile.Tensor, error) {
	if err := notBeforeZip(c); err != nil {
		return nil, err
	}
	within := &budget{c, maxDirectory + 1<<17} // the search for the directory reads up to 65 KiB
	archive, err := zip.NewReader(within, size)
	if err != nil {
		return nil, err
	}
	records := make(map[string]*zip.File, len(archive.File))
	pickle := ""
	for _, f := range archive.File {
		if f.Method != zip.Store || f.CompressedSize64 != f.UncompressedSize64 {
			return nil, fmt.Errorf("%s is compressed, want a file without compression, as PyTorch writes it", f.Name)
		}
		if records[f.Name] != nil {
			return nil, fmt.Errorf("%s is there twice", f.Name)
		}
		records[f.Name] = f
		if path.Base(f.Name) == "data.pkl" {
			if pickle != "" {
				return nil, fmt.Errorf("it has two pickles, %s and %s", pickle, f.Name)
			}
			pickle = f.Name
		}
	}
	if pickle == "" {
		return nil, fmt.Errorf("it has no data.pkl, want a file that torch.save wrote")
	}
	within.left = maxDirectory + limit
	z := &torchZip{c, size, within, records, strings.TrimSuffix(pickle, "data.pkl")}
	if z.records[z.folder+"byteorder"] != nil { // older versions of PyTorch did not write it
		text, err := z.read("byteorder", 16)
		if err != nil {
			return nil, err
		}
		if string(text) != "little" {
			return nil, fmt.Errorf("its byte order is %q, want little", text)
		}
	}
	text, err := z.read("data.pkl", limit)
	if err != nil {
		return nil, err
	}
	// A tensor needs about twenty objects, of fifty bytes each, and takes at least half a kilobyte of the file.
	views, err := read(text, 4096+size/16)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", pickle, err)
	}
	entries := make([]*tensorfile.Tensor, 0, len(views))
	for _, v := range views {
		e, err := z.entry(v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.name, err)
		}
		entries = append(entries, e)
	}
	return entries, apart(entries)
}

// notBeforeZip returns an error for a file in the format of PyTorch before 1.6, which is a sequence of pickles.
func notBeforeZip(c tensorfile.Contents) error {
	var start [14]byte
	if _, err := c.ReadAt(start[:], 0); err != nil && err != io.EOF {
		return err
	}
	if bytes.Equal(start[:], []byte("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19")) {
		return fmt.Errorf("it is in the format of PyTorch before 1.6: load it in PyTorch and save it again")
	}
	return nil
}

// budget is a reader that fails after it has read a number of bytes that is enough for any valid file.
type budget struct {
	from io.ReaderAt
	left int64
}

var errBudget = errors.New("the directory of the zip file is too large")

func (b *budget) ReadAt(p []byte, off int64) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, errBudget
	}
	return b.from.ReadAt(p, off)
}

type torchZip struct {
	contents tensorfile.Contents
	size     int64
	within   *budget
	records  map[string]*zip.File
	folder   string
}

// find returns the position and the size of a record in the file.
func (z *torchZip) find(name string) (offset, size int64, err error) {
	f := z.records[z.folder+name]
	if f == nil {
		return 0, 0, fmt.Errorf("%s is missing in the zip file", z.folder+name)
	}
	if offset, err = f.DataOffset(); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", f.Name, err)
	}
	if offset < 0 || offset > z.size || f.UncompressedSize64 > uint64(z.size-offset) {
		return 0, 0, fmt.Errorf("%s is said to have %d bytes at %d, but the file has %d", f.Name, f.UncompressedSize64, offset, z.size)
	}
	return offset, int64(f.UncompressedSize64), nil
}

func (z *torchZip) read(name string, limit int64) ([]byte, error) {
	offset, size, err := z.find(name)
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%s has %d bytes, want at most %d", z.folder+name, size, limit)
	}
	text := make([]byte, size)
	if _, err := z.contents.ReadAt(text, offset); err != nil && size > 0 {
		return nil, err
	}
	return text, nil
}

// entry returns a tensor with the position of its elements in the file.
func (z *torchZip) entry(v view) (*tensorfile.Tensor, error) {
	offset, size, err := z.find("data/" + v.storage.key)
	if err != nil {
		return nil, err
	}
	width := v.storage.dtype.Size()
	if v.storage.n < 0 || v.storage.n > size/width {
		return nil, fmt.Errorf("storage %s is said to have %d elements, but there are %d bytes of it", v.storage.key, v.storage.n, size)
	}
	e := &tensorfile.Tensor{Name: v.name, Dtype: v.storage.dtype, File: z.contents, Shape: v.shape}
	n, ok := tensorfile.Product(v.shape, 1)
	if !ok || v.offset < 0 || v.offset > v.storage.n || n > v.storage.n-v.offset {
		return nil, fmt.Errorf("shape %v at element %d does not fit its storage of %d", v.shape, v.offset, v.storage.n)
	}
	stride := int64(1)
	for i := len(v.shape) - 1; i >= 0; i-- {
		if v.shape[i] != 1 && v.stride[i] != stride {
			return nil, fmt.Errorf("shape %v has strides %v; only tensors whose elements lie one after another can be read", v.shape, v.stride)
		}
		stride *= int64(max(v.shape[i], 1))
	}
	e.Offset, e.Size = offset+v.offset*width, n*width
	return e, nil
}

// apart returns an error if two tensors share bytes, since a small file could then describe a large model. Only a head may have the
// same bytes as the embedding to which it is tied.
func apart(entries []*tensorfile.Tensor) error {
	sorted := slices.Clone(entries)
	slices.SortFunc(sorted, func(a, b *tensorfile.Tensor) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.Size, b.Size), strings.Compare(a.Name, b.Name))
	})
	var before *tensorfile.Tensor
	for _, e := range sorted {
		if e.Size == 0 {
			continue
		}
		if before != nil && e.Offset < before.Offset+before.Size {
			tied := canonical(before.Name) == embedding && e.Name == head
			if !tied || e.Offset != before.Offset || e.Size != before.Size {
				return fmt.Errorf("%s and %s overlap", before.Name, e.Name)
			}
		}
		before = e
	}
	return nil
}
