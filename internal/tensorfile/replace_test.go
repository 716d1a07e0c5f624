package tensorfile

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// asWriter makes this test's binary a program that begins to replace a file and waits.
const asWriter = "TENSORFILE_TEST_WRITES"

func TestMain(m *testing.M) {
	if path := os.Getenv(asWriter); path != "" {
		err := Replace(path, func(w io.Writer) error {
			if _, err := w.Write(make([]byte, 2<<20)); err != nil { // more than is buffered
				return err
			}
			fmt.Println("writing")
			_, err := io.Copy(io.Discard, os.Stdin)
			return err
		})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// writer is a process that is in the middle of replacing a file.
type writer struct {
	*exec.Cmd
	stdin io.Closer
	out   *bufio.Reader
}

// startWriter returns when the process is in the middle, or what it said instead.
func startWriter(t *testing.T, path string) (*writer, string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{Cmd: exec.Command(self)}
	w.Env = append(os.Environ(), asWriter+"="+path)
	if w.stdin, err = w.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := w.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Process.Kill() }) // it may have ended
	w.out = bufio.NewReader(out)
	line, _ := w.out.ReadString('\n')
	return w, strings.TrimSpace(line)
}

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

func contains(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); string(got) != want || err != nil {
		t.Errorf("%s holds %.20q, %v, want %q", path, got, err, want)
	}
}

func namesAre(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("the folder holds %v, want %v", got, want)
	}
}

var random = regexp.MustCompile(`[0-9a-f]{16}`)

// record returns the operations that run does on the disk, without random names.
func record(run func()) (ops []string) {
	restore := Intercept(func(op, name string) error {
		ops = append(ops, op+" "+random.ReplaceAllString(filepath.Base(name), "*"))
		return nil
	})
	defer restore()
	run()
	return ops
}

// A file is written and synced before it gets its name, and the name is synced before Replace returns.
func TestReplaceOrder(t *testing.T) {
	dir := t.TempDir()
	got := record(func() {
		if err := Replace(filepath.Join(dir, "s"), text("new")); err != nil {
			t.Error(err)
		}
	})
	want := []string{"lock s", "open .s.lock", "create .s.*.tmp", "write .s.*.tmp", "sync .s.*.tmp", "close .s.*.tmp", "rename s", "sync folder " + filepath.Base(dir), "remove .s.lock"}
	if !slices.Equal(got, want) {
		t.Errorf("the operations are\n%q, want\n%q", got, want)
	}
	contains(t, filepath.Join(dir, "s"), "new")
	namesAre(t, dir, "s")
}

var errDisk = errors.New("the disk fails")

// Whatever operation fails, there is an error, the file is the old or the new one, and nothing is beside it that the next Replace
// does not remove.
func TestReplaceOnAFailingDisk(t *testing.T) {
	for k := 0; ; k++ {
		dir := t.TempDir()
		path := filepath.Join(dir, "s")
		if err := Replace(path, text("old")); err != nil {
			t.Fatal(err)
		}
		n, failed := 0, ""
		restore := Intercept(func(op, name string) error {
			if n++; n-1 == k {
				failed = op + " " + name
				return errDisk
			}
			return nil
		})
		err := Replace(path, text("new"))
		restore()
		if failed == "" {
			if err != nil || k < 8 {
				t.Errorf("error %v after %d operations, want none after at least 8", err, k)
			}
			return
		}
		if !errors.Is(err, errDisk) {
			t.Errorf("%s fails: error %v", failed, err)
		}
		want := "old"
		if strings.HasPrefix(failed, "sync folder") || strings.HasPrefix(failed, "remove") {
			want = "new"
		}
		contains(t, path, want)
		if failed != "remove .s.lock" {
			namesAre(t, dir, "s")
		}
		if err := Replace(path, text("newer")); err != nil {
			t.Errorf("%s failed: then %v", failed, err)
		}
		contains(t, path, "newer")
		namesAre(t, dir, "s")
	}
}

// If the temporary file cannot be removed either, both errors are returned.
func TestBothErrors(t *testing.T) {
	errRemove := errors.New("it stays")
	for _, fails := range []string{"write", "rename"} {
		defer Intercept(func(op, name string) error {
			switch op {
			case fails:
				return errDisk
			case "remove":
				return errRemove
			}
			return nil
		})()
		if err := Replace(filepath.Join(t.TempDir(), "s"), text("new")); !errors.Is(err, errDisk) || !errors.Is(err, errRemove) {
			t.Errorf("%s fails: error %v, want both", fails, err)
		}
	}
}

// The error of the function that writes is returned, and the old file stays.
func TestReplaceWriteError(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	if err := Replace(path, text("old")); err != nil {
		t.Fatal(err)
	}
	for name, write := range map[string]func(io.Writer) error{
		"at once": func(io.Writer) error { return errDisk },
		"late":    func(w io.Writer) error { return errors.Join(text(strings.Repeat("x", 3<<20))(w), errDisk) },
	} {
		if err := Replace(path, write); !errors.Is(err, errDisk) {
			t.Errorf("%s: error %v", name, err)
		}
		contains(t, path, "old")
		namesAre(t, dir, "s")
	}
}

func TestReplaceErrors(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{"", ".", "..", dir, dir + "/", filepath.Join(dir, "s") + "/", filepath.Join(dir, "none", "s")} {
		if err := Replace(path, text("x")); err == nil {
			t.Errorf("%q: no error", path)
		}
	}
	namesAre(t, dir)
}

// Symbolic links at the name, at the lock file, and at the names of versions before are not followed.
func TestReplaceFollowsNoLink(t *testing.T) {
	for _, c := range []struct{ link, err string }{{"s", ""}, {"s.new", ""}, {".s.lock", "link"}} {
		dir, other := t.TempDir(), filepath.Join(t.TempDir(), "precious")
		if err := os.WriteFile(other, []byte("precious"), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(other, filepath.Join(dir, c.link)); err != nil {
			t.Skip("this system makes no symbolic links: ", err)
		}
		err := Replace(filepath.Join(dir, "s"), text("new"))
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("a link %s: error %v, want one about %q", c.link, err, c.err)
		}
		contains(t, other, "precious")
	}
}

// A lock file that is also the file of somebody else, by a hard link, is not written to.
func TestReplaceFollowsNoHardLink(t *testing.T) {
	for _, precious := range []string{"", "2026\n"} { // it could be taken for a lock that a killed process left
		dir, other := t.TempDir(), filepath.Join(t.TempDir(), "precious")
		if err := os.WriteFile(other, []byte(precious), 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(other, filepath.Join(dir, ".s.lock")); err != nil {
			t.Skip("this system makes no hard links: ", err)
		}
		if err := Replace(filepath.Join(dir, "s"), text("new")); err == nil || !strings.Contains(err.Error(), "is no lock file of this package") {
			t.Errorf("error %v", err)
		}
		contains(t, other, precious)
		namesAre(t, dir, ".s.lock")
	}
}

// A process whose lock file was removed acquires the lock again before it writes. If another process was faster, it writes nothing, and
// leaves that process's lock file alone.
func TestRemovedLockFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := os.Remove(filepath.Join(dir, ".s.lock")); err != nil {
			t.Skip("this system removes no open file: ", err)
		}
		other, said := startWriter(t, path)
		if said != "writing" {
			t.Fatalf("the other process says %q", said)
		}
		if err := Replace(path, text("new")); !errors.Is(err, ErrLocked) {
			t.Errorf("error %v, want ErrLocked", err)
		}
		if err := other.stdin.Close(); err != nil {
			t.Fatal(err)
		}
		if err := other.Wait(); err != nil {
			t.Errorf("the other process: %v", err)
		}
		if err := Replace(path, text("new")); err != nil {
			t.Error(err)
		}
		contains(t, path, "new")
	}
	if err := os.Remove(filepath.Join(dir, ".s.lock")); err != nil {
		t.Fatal(err)
	}
	if _, said := startWriter(t, path); said != "writing" {
		t.Fatalf("the other process says %q", said)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
	if _, err := Acquire(path); !errors.Is(err, ErrLocked) {
		t.Errorf("error %v, want ErrLocked, since the other process still writes", err)
	}
}

// A file that is no lock of ours is left alone.
func TestForeignLockFile(t *testing.T) {
	dir := t.TempDir()
	lock := filepath.Join(dir, ".s.lock")
	if err := os.WriteFile(lock, []byte("a diary"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := Replace(filepath.Join(dir, "s"), text("new")); err == nil || !strings.Contains(err.Error(), "is no lock file of this package") {
		t.Errorf("error %v", err)
	}
	contains(t, lock, "a diary")
	namesAre(t, dir, ".s.lock")
	if err := os.Truncate(lock, 0); err != nil { // the same file, which nobody holds
		t.Fatal(err)
	}
	if err := Replace(filepath.Join(dir, "s"), text("new")); err != nil {
		t.Errorf("the lock was not released after the error: %v", err)
	}
	namesAre(t, dir, "s")
}

// A second process gets an error that names the file and the first process. A killed process leaves neither a lock nor, after the
// next Replace, anything else.
func TestTwoProcesses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	if err := os.WriteFile(filepath.Join(dir, ".s.0123456789abcde.tmp"), nil, 0o666); err != nil { // 15 digits: not ours
		t.Fatal(err)
	}
	if err := Replace(path, text("old")); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		first, said := startWriter(t, path)
		if said != "writing" {
			t.Fatalf("the first process says %q", said)
		}
		process := fmt.Sprintf("process %d", first.Process.Pid)
		if err := Replace(path, text("new")); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), path) || !strings.HasSuffix(err.Error(), process) {
			t.Errorf("error %v, want ErrLocked, the file and %s", err, process)
		}
		if second, said := startWriter(t, path); !strings.Contains(said, process) {
			t.Errorf("the second process says %q, want %s", said, process)
			_ = second.Wait()
		}
		contains(t, path, "old")
		if err := first.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = first.Wait() // it was killed
	}
	first, _ := startWriter(t, path)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 4 { // the one of 15 digits, the lock, one temporary file, and the file
		t.Errorf("after three kills, while a fourth process writes, the folder holds %v", entries)
	}
	if err := first.stdin.Close(); err != nil {
		t.Fatal(err)
	}
	if err := first.Wait(); err != nil {
		t.Errorf("the last process: %v", err)
	}
	namesAre(t, dir, ".s.0123456789abcde.tmp", "s")
	if info, err := os.Stat(path); err != nil || info.Size() != 2<<20 {
		t.Errorf("the file is %v, %v, want that of the last process", info, err)
	}
}

// Goroutines of one process replace a file one after another, also while the process holds the lock, under any spelling.
func TestReplaceConcurrently(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	whole, err := Acquire("s")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			path := []string{"s", "./s", filepath.Join(dir, "s")}[i%3]
			if err := Replace(path, text(strings.Repeat(fmt.Sprint(i%10), 5000))); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got, err := os.ReadFile("s"); err != nil || len(got) != 5000 || strings.Trim(string(got), string(got[:1])) != "" {
		t.Errorf("the file has %d bytes, %v, want 5000 equal ones", len(got), err)
	}
	if second, said := startWriter(t, filepath.Join(dir, "s")); !strings.Contains(said, fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("a second process says %q while the lock is held", said)
		_ = second.Wait()
	}
	for range 2 { // the second one does nothing
		if err := whole.Release(); err != nil {
			t.Error(err)
		}
	}
	namesAre(t, dir, "s")
}

// A file system without locks is used without them.
func TestWithoutLocks(t *testing.T) {
	dir := t.TempDir()
	restore := Intercept(func(op, name string) error {
		if op == "lock" {
			return errors.ErrUnsupported
		}
		return nil
	})
	defer restore()
	if err := Replace(filepath.Join(dir, "s"), text("new")); err != nil {
		t.Error(err)
	}
	namesAre(t, dir, "s")
}

// Each piece of a tensor, when it is hashed and when it is written, and each operation on the disk is a step. A large file is synced in pieces.
func TestSteps(t *testing.T) {
	const pieces = 3
	arrays := []Array{{"a", []int{pieces * pieceSize / 4}, make([]float32, pieces*pieceSize/4)}}
	defer func(n int) { syncBytes = n }(syncBytes)
	syncBytes = 2 * pieceSize
	before, operations, syncs := Steps(), uint64(0), 0
	defer Intercept(func(op, _ string) error {
		operations++
		if op == "sync" {
			syncs++
		}
		return nil
	})()
	if err := Replace(filepath.Join(t.TempDir(), "f"), func(w io.Writer) error { return WriteSealed(w, nil, arrays) }); err != nil {
		t.Fatal(err)
	}
	if got, want := Steps()-before, operations+2*pieces; got != want || operations < 4 {
		t.Errorf("%d steps, want %d", got, want)
	}
	if syncs != 2 { // after two pieces, and at the end
		t.Errorf("the file is synced %d times, want 2", syncs)
	}
}
