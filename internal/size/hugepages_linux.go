package size

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// HugePages asks the kernel for pages of megabytes for weights that were just allocated and not yet written. With pages of 4 KiB, half
// a gigabyte needs 126,000 page faults. On a virtual machine they take several times as long as reading and converting the weights.
// The pages at both ends may contain other data: the small weights that are allocated between the large ones are then in huge pages too.
// This is only a hint, which the kernel may ignore. The memory is still managed by Go.
func HugePages[T byte | float32 | float64](data []T) {
	const worth = 4 << 20 // in bytes; a smaller slice contains at most a few huge pages
	size := len(data) * int(unsafe.Sizeof(T(0)))
	if size < worth {
		return
	}
	const page = 2 << 20 // or a multiple of a page
	start := uintptr(unsafe.Pointer(unsafe.SliceData(data)))
	end := (start + uintptr(size) + page - 1) / page * page
	start = start / page * page
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_HUGEPAGE)
}
