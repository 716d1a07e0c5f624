# Writes the files of this folder with nibabel (Debian's python3-nibabel), and expected.json, which says what nibabel reads from them.
import json, numpy as np, nibabel as nib

r = np.random.default_rng(1)
expected = {}

def save(name, data, affine=None, forms=(1, 1), zooms=None, slope=None, order="<", edit=None, extension=False):
    h = nib.Nifti1Header(endianness=order)
    h.set_data_dtype(data.dtype)
    h.set_data_shape(data.shape)
    image = nib.Nifti1Image(data.astype(data.dtype.newbyteorder(order)), affine, h)
    if zooms is not None:
        image.header.set_zooms(zooms)
    if affine is not None:
        image.set_sform(affine if forms[0] else None, forms[0])
        image.set_qform(affine if forms[1] else None, forms[1])
    if slope:
        image.header.set_slope_inter(*slope)
    if extension:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a comment of some length"))
    if edit:
        edit(image.header)
    nib.save(image, name)
    back = nib.load(name)
    header = back.header
    expected[name] = dict(
        shape=back.shape,
        zooms=[float(z) for z in header.get_zooms()[:3]],
        affine=back.affine[:3].tolist() if header["sform_code"] > 0 or header["qform_code"] > 0 else None,
        values=[repr(float(np.float32(v))) for v in back.get_fdata().reshape(-1, order="F")],
    )

turn = np.array([[0.9, -0.1, 0.2, -30], [0.15, 1.8, -0.3, 12.5], [-0.1, 0.2, 3.1, 7], [0, 0, 0, 1]])
shape = (3, 4, 2)
for order, ending in (("<", ".nii"), (">", "-big.nii")):
    for t in "uint8 int8 int16 uint16 int32 uint32 int64 uint64 float32 float64".split():
        dt = np.dtype(t)
        if dt.kind == "f":
            data = r.normal(size=shape).astype(dt)
        else:
            data = r.integers(np.iinfo(dt).min, np.iinfo(dt).max, size=shape, dtype=dt)
        save(t + ending, data, turn, order=order)
small = lambda *s: r.integers(-500, 500, size=s).astype(np.int16)
save("scaled.nii.gz", small(3, 4, 2), turn, slope=(0.25, -3.5))
save("scaled-big.nii.gz", small(3, 4, 2), turn, slope=(2.0, 1024.0), order=">")
save("four.nii.gz", small(3, 2, 2, 4), turn, zooms=(1, 2, 3, 0.5))
save("two.nii", small(5, 3), np.diag([2, 3, 1, 1]))
save("sform.nii", small(3, 4, 2), turn, forms=(2, 0))
rotation = np.array([[0, 0, 3.0, 1], [-2.0, 0, 0, 2], [0, 1.0, 0, 3], [0, 0, 0, 1]])
save("qform.nii", small(3, 4, 2), rotation, forms=(0, 1))
flipped = rotation @ np.diag([1, 1, -1, 1])
save("qform-left.nii", small(3, 4, 2), flipped, forms=(0, 1))
half = np.diag([-1.5, -2.5, 1, 1.0])
save("qform-half.nii", small(3, 4, 2), half, forms=(0, 1))
save("noform.nii", small(3, 4, 2), np.eye(4), forms=(0, 0), zooms=(1, 2, 3))
save("extension.nii.gz", small(3, 4, 2), turn, extension=True)
json.dump(expected, open("expected.json", "w"), indent=None, separators=(",", ":"))
