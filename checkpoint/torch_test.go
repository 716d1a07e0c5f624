package checkpoint

import (
	"math"
	"slices"
	"testing"

	"github.com/gomamba/mamba/internal/tensorfile"
)

// The reader knows everything that torch.save writes for a state_dict: tensors of all four types, parts of a storage, parameters, an
// OrderedDict with the attribute of a state_dict, and numbers of several sizes.
func TestTorchFile(t *testing.T) {
	ordered := pGlobal("collections", "OrderedDict") + ")R"
	items := pTuple(
		pString("a"), pTensor(pStorage("FloatStorage", "0", 6), 0, pTuple(pInt(2), "K\x01", "M\x02\x00"), pTuple(pInt(2), pInt(77), pInt(1))),
		pString("b"), pGlobal("torch._utils", "_rebuild_parameter")+pTuple(pTensor(pStorage("FloatStorage", "0", 6), 4, pTuple(pLong(2)), pTuple(pLong(1))), "\x88", ordered)+"R",
		pString("c"), pTensor(pStorage("HalfStorage", "1", 1), 0, ")", ")"),
		pString("d"), pTensor(pStorage("BFloat16Storage", "2", 1), 0, pInt(1)+"\x85", pInt(1)+"\x85"),
		pString("e"), pTensor(pStorage("DoubleStorage", "3", 1), 0, pInt(1)+"\x85", pInt(1)+"\x85"),
		pString("f"), pTensor(pStorage("FloatStorage", "4", 0), 0, pInt(0)+"\x85", pInt(1)+"\x85"),
	)
	items = items[:len(items)-1] + "u" // the items of a dictionary, not a tuple
	attributes := "}" + pString("_metadata") + ordered + "(" + pString("") + "}" + pString("version") + "K\x01su" + "sb"
	pickle := "\x80\x02" + ordered + "q\x00" + items + attributes + "."
	storages := []string{"", "\x00\x3c", "\x80\x3f", "\x00\x00\x00\x00\x00\x00\xf0\x3f", ""}
	for i := range 6 {
		bits := math.Float32bits(float32(i))
		storages[0] += string([]byte{byte(bits), byte(bits >> 8), byte(bits >> 16), byte(bits >> 24)})
	}
	file := torchFile(t, pickle, storages...)
	entries, err := readTorch(tensorfile.Memory(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	views := map[string][]float32{}
	for _, e := range entries {
		got := make([]float32, e.Size/e.Dtype.Size())
		if err := tensorfile.Fill([]tensorfile.Job{{From: e, To: got}}); err != nil {
			t.Fatal(err)
		}
		views[e.Name] = got
	}
	want := map[string][]float32{"a": {0, 1, 2, 3}, "b": {4, 5}, "c": {1}, "d": {1}, "e": {1}, "f": {}}
	if len(views) != len(want) {
		t.Errorf("%d tensors, want %d", len(views), len(want))
	}
	for name, w := range want {
		if !slices.Equal(views[name], w) {
			t.Errorf("%s is %v, want %v", name, views[name], w)
		}
	}
}
