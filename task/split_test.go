package task

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// numbered returns a text of files whose bytes say which file they are from.
func numbered(sizes ...int) Text {
	text := Text{Path: "numbered"}
	for i, size := range sizes {
		text.Files = append(text.Files, File{Name: fmt.Sprintf("%03d.txt", i), Data: bytes.Repeat([]byte{byte(i)}, size)})
	}
	return text
}

func TestSplitWholeFiles(t *testing.T) {
	sizes := make([]int, 100)
	for i := range sizes {
		sizes[i] = 50 + i
	}
	text := numbered(sizes...)
	train, heldOut, err := Split(text, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	if share := float64(heldOut.Size()) / float64(text.Size()); share < 0.08 || share > 0.12 {
		t.Errorf("held out %v of the text, want about 0.1", share)
	}
	if train.Size()+heldOut.Size() != text.Size() || len(train.Files)+len(heldOut.Files) != len(text.Files) {
		t.Errorf("%d+%d bytes of %d, %d+%d files of %d", train.Size(), heldOut.Size(), text.Size(),
			len(train.Files), len(heldOut.Files), len(text.Files))
	}
	trained := train.Join()
	for _, f := range heldOut.Files {
		if bytes.Contains(trained, f.Data[:1]) {
			t.Errorf("%s is in both parts", f.Name)
		}
	}
	_, again, err := Split(text, 0.1)
	if err != nil || !reflect.DeepEqual(heldOut, again) {
		t.Errorf("second split differs: %q and %q, %v", names(heldOut), names(again), err)
	}
}

func TestSplitEndOfFiles(t *testing.T) {
	single := Text{Path: "single", Files: []File{{Name: "single", Data: []byte("0123456789012345678AB")}}}
	train, heldOut, err := Split(single, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	if string(train.Join()) != "012345678901234567" || string(heldOut.Join()) != "8AB" {
		t.Errorf("got %q and %q", train.Join(), heldOut.Join())
	}

	// No choice among two whole files of the same size comes near a tenth.
	two := numbered(1000, 1000)
	if train, heldOut, err = Split(two, 0.1); err != nil {
		t.Fatal(err)
	}
	if train.Size() != 1800 || heldOut.Size() != 200 || len(heldOut.Files) != 2 {
		t.Errorf("got %d and %d bytes, held out of %q", train.Size(), heldOut.Size(), names(heldOut))
	}
	// Growing a training file must not write into the held-out part.
	_ = append(train.Files[0].Data, 'X')
	if heldOut.Files[0].Data[0] != 0 {
		t.Error("parts share capacity")
	}
}

func TestSplitErrors(t *testing.T) {
	for _, fraction := range []float64{-1, 0, 1, 2} {
		if _, _, err := Split(numbered(1000), fraction); err == nil || !strings.Contains(err.Error(), "should be between 0 and 1") {
			t.Errorf("fraction %v: %v", fraction, err)
		}
	}
	for _, size := range []int{0, 1, 2, 10} {
		_, _, err := Split(numbered(size), 0.1)
		if err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("task: split: numbered: %d bytes of text are too few", size)) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	if _, _, err := Split(Text{Path: "none"}, 0.1); err == nil {
		t.Error("no files: no error")
	}
}
