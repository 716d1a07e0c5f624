package op

import (
	"strings"
	"testing"

	G "gorgonia.org/gorgonia"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/internal/gputest"
	"github.com/gomamba/mamba/internal/operator"
)

// With FreeAfterUse the memory of a chain of operators does not grow with its length, the results are the same in every run, a value in the middle is
// gone, and one that is kept or that no operator reads stays.
func TestFreeAfterUse(t *testing.T) {
	const rows, channels, most = 64, 1 << 10, 12
	var want []float32
	var before int64
	for _, test := range []struct {
		name   string
		length int
		free   bool
	}{{"all stay", most, false}, {"short", 4, true}, {"long", most, true}} {
		device := gputest.Open(t, cuda.Open)
		p, err := On(device, cuda.Strict)
		if err != nil {
			t.Fatal(err)
		}
		g := G.NewGraph()
		x := G.NewTensor(g, f32, 3, G.WithShape(1, rows, channels), G.WithName("x"), G.WithInit(G.Ones()))
		var all G.Nodes
		y := G.Must(p.Upload(x))
		for range test.length {
			parts, err := Split(y, channels/2, channels/2)
			if err != nil {
				t.Fatal(err)
			}
			half := G.Must(Activate(G.Must(Add(parts[0], parts[1])), SiLU)) // both parts are equal
			y = G.Must(Concat(2, half, half))
			all = append(all, y)
		}
		if test.free {
			FreeAfterUse(g, all[1])
		}
		m := G.NewTapeMachine(g)
		for run := range 3 {
			m.Reset()
			if err := m.RunAll(); err != nil {
				t.Fatal(err)
			}
			got, err := y.Value().(*operator.Tensor).ToHost()
			if err != nil {
				t.Fatalf("%s, run %d: the last value: %v", test.name, run, err)
			}
			if test.length == most {
				if want == nil {
					want = got.Data().([]float32)
				}
				for i, v := range got.Data().([]float32) {
					if v != want[i] {
						t.Fatalf("%s, run %d: element %d is %v, want %v", test.name, run, i, v, want[i])
					}
				}
			}
			if _, err := all[1].Value().(*operator.Tensor).ToHost(); err != nil {
				t.Errorf("%s, run %d: a value that is kept: %v", test.name, run, err)
			}
			_, err = all[2].Value().(*operator.Tensor).ToHost()
			if gone := err != nil && strings.Contains(err.Error(), "op.FreeAfterUse"); gone != test.free {
				t.Errorf("%s, run %d: reading a value in the middle: %v", test.name, run, err)
			}
		}
		used, _ := device.Memory()
		switch one := int64(4 * rows * channels); {
		case test.name == "short":
			before = used
		case test.free && used != before:
			t.Errorf("%d operators use %d bytes, %d use %d", 4, before, most, used)
		case !test.free && used < most*one:
			t.Errorf("without FreeAfterUse %d bytes are used, want at least %d", used, most*one)
		}
		m.Close()
	}
	FreeAfterUse(nil)
}
