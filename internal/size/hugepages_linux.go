package size

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// HugePages asks the kernel for pages of megabytes for weights that were just allocated and not yet written. With pages of 4 KiB, half
// a gigabyte needs 126,000 page faults. On a virtual machine they take several times as long as reading and converting the weights.
// This is only a hint, which the kernel may ignore. The memory is still managed by Go.
func HugePages[T byte | float32 | float64](data []T) {
	const worth = 4 << 20 // in bytes; a smaller slice contains at most a few huge pages
	size := len(data) * int(unsafe.Sizeof(T(0)))
	if size < worth {
		return
	}
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(data))), size)
	page := os.Getpagesize()
	start := (page - int(uintptr(unsafe.Pointer(&bytes[0]))%uintptr(page))) % page
	_ = unix.Madvise(bytes[start:start+(size-start)/page*page], unix.MADV_HUGEPAGE)
}
