//go:build linux && (amd64 || arm64)

package dist

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"unsafe"

	"github.com/ebitengine/purego"
)

// mpiLibrary is a loaded MPI library.
type mpiLibrary struct {
	file    string
	address [calls]uintptr
	abi
	openMPI bool
}

// abi has the constants of mpi.h, which differ from library to library.
type abi struct {
	world, bytes, errorsReturn uintptr // handles
	statusIgnore               uintptr
	funneled                   uintptr // the level of threads
}

// The functions of the library that are called. MPI's own names: other tools put theirs in front of these.
const (
	mpiInit = iota
	mpiRank
	mpiSize
	mpiSetErrors
	mpiSend
	mpiReceive
	mpiTest
	mpiErrorText
	mpiFinalize
	mpiAbort
	calls
)

var callSymbols = [calls]string{"MPI_Init_thread", "MPI_Comm_rank", "MPI_Comm_size", "MPI_Comm_set_errhandler", "MPI_Isend", "MPI_Irecv", "MPI_Test",
	"MPI_Error_string", "MPI_Finalize", "MPI_Abort"}

// The three ABIs. In Open MPI's, handles are the addresses of symbols.
var (
	mpichABI    = abi{world: 0x44000000, bytes: 0x4c00010d, errorsReturn: 0x54000001, statusIgnore: 1, funneled: 1}
	standardABI = abi{world: 0x101, bytes: 0x247, errorsReturn: 0x143, statusIgnore: 0, funneled: 1024}
)

// The names of the libraries, those of a launcher's own kind first.
var (
	openMPINames  = []string{"libmpi.so.40", "libmpi.so.80"}
	standardNames = []string{"libmpi_abi.so.1", "libmpi_abi.so.0"}
	mpichNames    = []string{"libmpich.so.12", "libmpi.so.12", "libmpi_intel.so.12", "libmpi.so.13"}
)

// mpiFolders returns where libraries of MPI are. "" stands for the loader's own search.
func mpiFolders() []string {
	folders := []string{""}
	for _, variable := range []string{"MPI_HOME", "MPI_ROOT", "I_MPI_ROOT", "OPAL_PREFIX"} {
		if root := os.Getenv(variable); root != "" {
			folders = append(folders, filepath.Join(root, "lib"), filepath.Join(root, "lib64"), filepath.Join(root, "lib", "release"))
		}
	}
	for _, pattern := range []string{
		"/usr/lib/*-linux-gnu", "/usr/lib64/openmpi/lib", "/usr/lib64/mpich/lib", "/usr/lib64/mpi/gcc/*/lib64", "/usr/local/lib", "/usr/local/mpi/lib",
		"/opt/openmpi*/lib", "/opt/mpich*/lib", "/opt/amazon/openmpi*/lib*", "/opt/hpcx*/ompi/lib", "/opt/intel/oneapi/mpi/latest/lib", "/opt/cray/pe/mpich/default/ofi/gnu/*/lib-abi-mpich",
	} {
		found, _ := filepath.Glob(pattern)
		slices.Sort(found)
		folders = append(folders, found...)
	}
	return folders
}

// loadMPI finds the library for a launcher.
func loadMPI(l launch) (*mpiLibrary, error) {
	if file := os.Getenv("MAMBA_MPI"); file != "" {
		lib, err := openMPILibrary(file)
		if err != nil {
			return nil, fmt.Errorf("dist: join: MAMBA_MPI is %s: %w", file, err)
		}
		return lib, nil
	}
	names := slices.Concat(openMPINames, standardNames, mpichNames)
	if l.pmi {
		names = slices.Concat(mpichNames, standardNames, openMPINames)
	}
	var wrong error
	for _, name := range names { // a library of the launcher's kind in any folder goes before one of another kind
		for _, folder := range mpiFolders() {
			file := filepath.Join(folder, name)
			if folder != "" {
				if _, err := os.Stat(file); err != nil {
					continue
				}
			}
			lib, err := openMPILibrary(file)
			if err == nil {
				return lib, nil
			}
			if folder != "" || wrong == nil {
				wrong = err // the error of a file that exists is more useful than the loader's "not found"
			}
		}
	}
	return nil, fmt.Errorf("dist: join: %s has started rank %d of %d, and there is no MPI library (%s) where the loader looks, in $MPI_HOME, $MPI_ROOT or the usual folders; "+
		"install the one that the launcher belongs to (Debian: openmpi-bin or mpich), or name its file in $MAMBA_MPI: %w", l.by, l.rank, l.size, strings.Join(names, ", "), wrong)
}

// openMPILibrary loads a library and finds out which ABI it has.
func openMPILibrary(file string) (*mpiLibrary, error) {
	handle, err := purego.Dlopen(file, purego.RTLD_NOW|purego.RTLD_GLOBAL) // global: Open MPI's plugins look for its symbols
	if err != nil {
		return nil, err
	}
	lib := &mpiLibrary{file: file}
	for i, name := range callSymbols {
		if lib.address[i], err = purego.Dlsym(handle, name); err != nil {
			return nil, err
		}
	}
	var errs [3]error
	open := abi{funneled: 1}
	open.world, errs[0] = purego.Dlsym(handle, "ompi_mpi_comm_world")
	open.bytes, errs[1] = purego.Dlsym(handle, "ompi_mpi_byte")
	open.errorsReturn, errs[2] = purego.Dlsym(handle, "ompi_mpi_errors_return")
	switch {
	case strings.Contains(filepath.Base(file), "mpi_abi"):
		lib.abi = standardABI
	case errs == [3]error{}:
		lib.abi, lib.openMPI = open, true
	default:
		lib.abi = mpichABI
	}
	return lib, nil
}

// call calls a function of the library.
//
//go:uintptrescapes
func (lib *mpiLibrary) call(f int, args ...uintptr) error {
	code, _, _ := purego.SyscallN(lib.address[f], args...)
	if int32(code) == 0 {
		return nil
	}
	text, n := make([]byte, 8192), new(int32) // longer than MPI_MAX_ERROR_STRING of any library
	purego.SyscallN(lib.address[mpiErrorText], code, uintptr(unsafe.Pointer(&text[0])), uintptr(unsafe.Pointer(n)))
	return fmt.Errorf("%s: %s", callSymbols[f], text[:min(max(int(*n), 0), len(text))])
}

// start starts the library.
func (lib *mpiLibrary) start() error {
	if lib.openMPI {
		// Open MPI handles SIGSEGV and others, which are Go's. The library reads the environment of C, which os.Setenv does not change.
		if setenv, err := purego.Dlsym(purego.RTLD_DEFAULT, "setenv"); err == nil {
			name, none := []byte("OMPI_MCA_opal_signal\x00"), []byte{0}
			purego.SyscallN(setenv, uintptr(unsafe.Pointer(&name[0])), uintptr(unsafe.Pointer(&none[0])), 0)
			runtime.KeepAlive(name)
			runtime.KeepAlive(none)
		}
	}
	got := new(int32)
	if err := lib.call(mpiInit, 0, 0, lib.funneled, uintptr(unsafe.Pointer(got))); err != nil {
		return err
	}
	return lib.call(mpiSetErrors, lib.world, lib.errorsReturn)
}

// place returns the rank of this process and the number of processes.
func (lib *mpiLibrary) place() (rank, size int, err error) {
	r, n := new(int32), new(int32)
	if err = lib.call(mpiRank, lib.world, uintptr(unsafe.Pointer(r))); err == nil {
		err = lib.call(mpiSize, lib.world, uintptr(unsafe.Pointer(n)))
	}
	return int(*r), int(*n), err
}

// begin starts a message. r must stay where it is until test says that it is done.
func (lib *mpiLibrary) begin(r *request, tag Tag) error {
	f := mpiSend
	if r.Receive {
		f = mpiReceive
	}
	return lib.call(f, uintptr(unsafe.Pointer(&r.Bytes[0])), uintptr(len(r.Bytes)), lib.bytes, uintptr(r.Peer), uintptr(tag), lib.world, uintptr(unsafe.Pointer(&r.handle)))
}

// test reports whether a message is done.
func (lib *mpiLibrary) test(r *request) (bool, error) {
	err := lib.call(mpiTest, uintptr(unsafe.Pointer(&r.handle)), uintptr(unsafe.Pointer(&r.done)), lib.statusIgnore)
	return r.done != 0, err
}

func (lib *mpiLibrary) finish() error { return lib.call(mpiFinalize) }

func (lib *mpiLibrary) abort() { _ = lib.call(mpiAbort, lib.world, 1) }

// yield lets another thread have the processor.
func yield() { syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0) }
