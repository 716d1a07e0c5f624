package tensorfile

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePages asks for pages of megabytes under weights that were just allocated and never touched. Half a gigabyte is 126,000
// faults of 4 KiB each, which cost a virtual machine several times what reading and converting the weights does. It is a hint
// about memory that stays Go's; the kernel may ignore it.
func hugePages[T float32 | float64](data []T) {
	const worth = 4 << 20 // bytes: smaller ones hold no whole huge page, or hardly more
	size := len(data) * int(unsafe.Sizeof(T(0)))
	if size < worth {
		return
	}
	bytes := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(data))), size)
	page := os.Getpagesize()
	start := (page - int(uintptr(unsafe.Pointer(&bytes[0]))%uintptr(page))) % page
	_ = unix.Madvise(bytes[start:start+(size-start)/page*page], unix.MADV_HUGEPAGE)
}
