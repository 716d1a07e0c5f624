package checkpoint

import (
	"archive/zip"
	"encoding/binary"
	"fmt"
	"testing"
)

// The opcodes of a pickle, for the tests to write their own.

func pString(s string) string {
	return "X" + string(binary.LittleEndian.AppendUint32(nil, uint32(len(s)))) + s
}

func pInt(n int) string { return "J" + string(binary.LittleEndian.AppendUint32(nil, uint32(int32(n)))) }

func pLong(n int64) string {
	return "\x8a\x08" + string(binary.LittleEndian.AppendUint64(nil, uint64(n)))
}

func pGlobal(module, name string) string { return "c" + module + "\n" + name + "\n" }

func pTuple(items ...string) string {
	s := "("
	for _, i := range items {
		s += i
	}
	return s + "t"
}

func pStorage(class, key string, n int) string {
	return pTuple(pString("storage"), pGlobal("torch", class), pString(key), pString("cpu"), pInt(n)) + "Q"
}

// pTensor returns the pickle of a tensor, as torch.save writes it.
func pTensor(storage string, offset int, shape, stride string) string {
	return pGlobal("torch._utils", "_rebuild_tensor_v2") +
		pTuple(storage, pInt(offset), shape, stride, "\x89", pGlobal("collections", "OrderedDict")+")R") + "R"
}

// pDict returns the whole pickle of a dictionary. Its arguments are alternately the key and the value of an item.
func pDict(items ...string) string {
	s := "\x80\x02}("
	for _, i := range items {
		s += i
	}
	return s + "u."
}

// torchFile returns a file as torch.save writes it, with a pickle and storages of the names 0, 1, …
func torchFile(t testing.TB, pickle string, storages ...string) []byte {
	t.Helper()
	records := []string{"archive/data.pkl", pickle, "archive/byteorder", "little"}
	for i, s := range storages {
		records = append(records, fmt.Sprint("archive/data/", i), s)
	}
	return zipFile(t, zip.Store, append(records, "archive/version", "3\n")...)
}

func shape23() string  { return pTuple(pInt(2), pInt(3)) }
func stride31() string { return pTuple(pInt(3), pInt(1)) }
