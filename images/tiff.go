package images

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// checkTIFF returns an error for what the decoder of golang.org/x/image does not read, or would read in part: several pages, and samples that are
// no unsigned integers of at most 16 bits. blank reports whether the pixels are compressed as a fax, which needs a bit for an empty row.
func checkTIFF(data []byte) (blank bool, err error) {
	if len(data) < 8 {
		return false, fmt.Errorf("is a TIFF file of %d bytes, want at least 8: it is truncated", len(data))
	}
	var order binary.ByteOrder = binary.LittleEndian
	if data[0] == 'M' {
		order = binary.BigEndian
	}
	const mostPages = 1 << 16
	pages, bits, samples, planes := 0, uint32(0), uint32(1), uint16(1)
	for at := uint64(order.Uint32(data[4:])); at != 0; {
		if at+2 > uint64(len(data)) {
			return false, fmt.Errorf("page %d begins at byte %d of %d: the file is truncated", pages+1, at, len(data))
		}
		entries := uint64(order.Uint16(data[at:]))
		end := at + 2 + 12*entries
		if end+4 > uint64(len(data)) {
			return false, fmt.Errorf("the %d tags of page %d end at byte %d of %d: the file is truncated", entries, pages+1, end, len(data))
		}
		if pages++; pages > mostPages {
			return false, errors.New("the pages have no end")
		}
		for tag := data[at+2 : end]; pages == 1 && len(tag) > 0; tag = tag[12:] {
			// A tag of one short has its value in place; of several, that of the first one where the tag points to.
			value := tag[8:]
			count := order.Uint32(tag[4:])
			if count > 2 && order.Uint16(tag[2:]) == 3 {
				if p := uint64(order.Uint32(value)); p+2 <= uint64(len(data)) {
					value = data[p:]
				}
			}
			switch order.Uint16(tag) {
			case 258:
				bits = count
			case 277:
				samples = uint32(order.Uint16(value))
			case 284:
				planes = order.Uint16(value)
			}
			switch id, v := order.Uint16(tag), order.Uint16(value); {
			case id == 258 && v != 1 && v != 2 && v != 4 && v != 8 && v != 16:
				return false, fmt.Errorf("has samples of %d bits, want 8 or 16", v)
			case id == 259:
				blank = v == 2 || v == 3 || v == 4
			case id == 339 && v == 3:
				return false, errors.New("has samples of floating-point numbers, want unsigned integers of 8 or 16 bits")
			case id == 339 && v != 1:
				return false, fmt.Errorf("has samples of format %d, want 1, unsigned integers", v)
			}
		}
		at = uint64(order.Uint32(data[end:]))
	}
	switch {
	case planes == 2 && samples > 1:
		return false, fmt.Errorf("has %d planes, one for each sample, want the samples of a pixel side by side (planar configuration 1)", samples)
	case bits > 0 && bits < samples:
		return false, fmt.Errorf("has the bits of %s (BitsPerSample) but %d samples for a pixel, want those of each", plural(int(bits), "sample"), samples)
	}
	if pages != 1 {
		return false, fmt.Errorf("has %s, want 1: save each as a file of its own", plural(pages, "page"))
	}
	return blank, nil
}
