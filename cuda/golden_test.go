package cuda

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/internal/golden"
)

// TestGoldenScan compares the scan with results of the reference implementation of state-spaces/mamba. The tolerance is 1e-5 of the largest
// magnitude.
func TestGoldenScan(t *testing.T) {
	s := open(t)
	file, err := golden.Read("../testdata/golden_scan.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]map[string]golden.Tensor{}
	for key, x := range file.Tensors {
		name, rest, _ := strings.Cut(key, ".")
		if cases[name] == nil {
			cases[name] = map[string]golden.Tensor{}
		}
		cases[name][rest] = x
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			softplus := slices.Contains(strings.Fields(file.Metadata[name]), "delta_softplus=1")
			goldenCase(t, s, c, softplus)
		})
	}
	if len(cases) != 35 {
		t.Errorf("%d cases, want 35", len(cases))
	}
}

// ours transposes a golden tensor from the reference's order of axes to ours.
func ours(name string, x golden.Tensor) golden.Tensor {
	switch {
	case len(x.Shape) == 3 && name != "last_state":
		return x.Transpose(0, 2, 1) // (batch, dim, length)
	case len(x.Shape) == 4:
		return x.Transpose(0, 3, 1, 2) // (batch, groups, state, length)
	}
	return x
}

func goldenCase(t *testing.T, s *Stream, c map[string]golden.Tensor, softplus bool) {
	in := func(name string) golden.Tensor { return ours(name, c["in."+name]) }
	u, a := in("u"), in("A")
	scan := &Scan[float32]{
		Batch: u.Shape[0], Length: u.Shape[1], Channels: u.Shape[2], State: a.Shape[1], Softplus: softplus,
		U: put[float32](t, s, u.Data), Delta: put[float32](t, s, in("delta").Data), A: put[float32](t, s, a.Data),
		D: put[float32](t, s, in("D").Data), Z: put[float32](t, s, in("z").Data), DeltaBias: put[float32](t, s, in("delta_bias").Data),
	}
	projection := func(name string) Projection[float32] {
		x := in(name)
		p := Projection[float32]{Data: put[float32](t, s, x.Data)}
		switch len(x.Shape) {
		case 3:
			p.Groups = 1
		case 4:
			p.Groups = x.Shape[2]
		}
		return p
	}
	scan.B, scan.C = projection("B"), projection("C")
	like := func(a Array[float32]) Array[float32] {
		if a.Absent() {
			return a
		}
		return blank[float32](t, s, a.Len())
	}
	y, final, checkpoints := like(scan.U), blank[float32](t, s, scan.Batch*scan.Channels*scan.State), blank[float32](t, s, scan.CheckpointLen())
	g := &ScanGrad[float32]{U: like(scan.U), Delta: like(scan.Delta), A: like(scan.A), B: like(scan.B.Data), C: like(scan.C.Data),
		D: like(scan.D), Z: like(scan.Z), DeltaBias: like(scan.DeltaBias)}
	do(t, scan.Forward(s, y, final, checkpoints),
		scan.Backward(s, checkpoints, put[float32](t, s, ours("dout", c["dout"]).Data), Array[float32]{}, g))
	for name, got := range map[string]Array[float32]{
		"out": y, "last_state": final, "grad.u": g.U, "grad.delta": g.Delta, "grad.A": g.A, "grad.B": g.B, "grad.C": g.C, "grad.D": g.D,
		"grad.z": g.Z, "grad.delta_bias": g.DeltaBias,
	} {
		want, ok := c[name]
		if ok == got.Absent() {
			t.Errorf("%s: in the file %v, in our results %v", name, ok, !got.Absent())
		}
		scale, far := 0.0, 0.0
		v := get(t, s, got)
		for i, w := range ours(name, want).Data {
			scale, far = max(scale, math.Abs(w)), max(far, math.Abs(v[i]-w))
			if v[i] != v[i] {
				far = math.Inf(1)
			}
		}
		if !(far <= 1e-5*scale) {
			t.Errorf("%s is off by up to %g, largest magnitude %g", name, far, scale)
		}
	}
}
