package checkpoint

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strings"

	"github.com/gomamba/mamba/blas"
	"github.com/gomamba/mamba/internal/gguf"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/op"
)

// loadGGUF returns the model in a GGUF file. Its narrow matrices lie in the mapped file, which is unmapped when nothing refers to them.
func loadGGUF(name, types string, place op.Place, opts []nn.Option) (*nn.LM, error) {
	file, err := gguf.Open(name)
	if err != nil {
		return nil, fmt.Errorf("checkpoint: %w", err)
	}
	lm, mapped, err := readGGUF(file, types, opts)
	if err == nil {
		err = toDevice(lm, place)
	}
	if err == nil {
		err = file.Whole() // up to the end of a page, the memory after the end of a file is zero
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("checkpoint: %s: %w", name, err), file.Close())
	}
	if !mapped {
		return lm, file.Close()
	}
	runtime.AddCleanup(file, func(c tensorfile.Contents) { _ = c.Close() }, file.Contents())
	return lm, nil
}

// readGGUF reports also whether weights of the model lie in the mapped file.
func readGGUF(file *gguf.File, types string, opts []nn.Option) (lm *nn.LM, mapped bool, err error) {
	cfg, err := ggufConfig(file)
	if err != nil {
		return nil, false, err
	}
	tensors := make(map[string]*gguf.Tensor, len(file.Tensors))
	for _, t := range file.Tensors {
		tensors[t.Name] = t
	}
	if v := tensors["token_embd.weight"]; v != nil && len(v.Shape) == 2 {
		if n, known, err := vocabulary(file); err != nil {
			return nil, false, err
		} else if known && n != v.Shape[0] {
			return nil, false, fmt.Errorf("token_embd.weight has %d rows, want %d, the number of tokens", v.Shape[0], n)
		}
		cfg.Vocab = v.Shape[0]
	}
	if cfg.NLayer > len(tensors) {
		return nil, false, fmt.Errorf("mamba.block_count is %d, but the file has only %d tensors", cfg.NLayer, len(tensors))
	}
	cfg.UntiedHead = tensors["output.weight"] != nil
	from := map[string]*gguf.Tensor{} // by the names of the Hugging Face layout
	wants := lmTensors(cfg)
	if err := matchGGUF(tensors, wants, from); err != nil {
		return nil, false, err
	}
	if lm = nn.NewLM(cfg, append(slices.Clone(opts), withoutValues)...); lm.Err() != nil {
		return nil, false, lm.Err()
	}
	if types == "" {
		types = "file"
	}
	err = fill(lm, types, func(name string) matrix {
		t := from[name]
		narrow := func(outputs int) (*blas.Weights, error) {
			data, isMapped, err := tensorfile.Bytes(file.Contents(), t.Offset, t.Size)
			if err != nil {
				return nil, err
			}
			_, inputs := t.Rows()
			w, err := blas.NewWeights(t.Type, outputs, inputs, data)
			if err == nil && isMapped {
				mapped = true
				w.Hold(file)
			}
			return w, err
		}
		return matrix{shape: t.Shape, typ: t.Type, narrow: narrow, read: func(first int64, to []float32) error {
			return readRows(file, t, first, to, strings.HasSuffix(name, ".A_log"))
		}}
	})
	return lm, mapped, err
}

// readRows reads whole rows of a tensor, by parts, so that neither the file's pages nor a second copy of a large tensor stay in memory. Of A = -exp(A_log) it
// returns A_log.
func readRows(file *gguf.File, t *gguf.Tensor, first int64, to []float32, isA bool) error {
	rows, inputs := t.Rows()
	row := int(t.Size) / rows
	some := max(1, (1<<20)/row) // rows of a part
	buffer := make([]byte, min(some, len(to)/inputs)*row)
	for at := int(first) / inputs; len(to) > 0; at += some {
		n := min(some, len(to)/inputs)
		data := buffer[:n*row]
		if got, err := file.Contents().ReadAt(data, t.Offset+int64(at)*int64(row)); got < len(data) {
			return fmt.Errorf("cannot read row %d: %w", at+got/row, err)
		}
		w, err := blas.NewWeights(t.Type, n, inputs, data)
		if err == nil {
			err = w.Check()
		}
		if err != nil {
			return err
		}
		for i := range n {
			w.Row(i, to[i*inputs:(i+1)*inputs])
		}
		if isA {
			for i, a := range to[:n*inputs] {
				if !(a < 0) || math.IsInf(float64(a), 0) {
					return fmt.Errorf("element %d is %v, want a finite number below 0", at*inputs+i, a)
				}
				to[i] = float32(math.Log(-float64(a)))
			}
		}
		to = to[n*inputs:]
	}
	return nil
}

// ggufConfig reads the configuration, but for the vocabulary and whether the head is tied.
func ggufConfig(f *gguf.File) (c nn.LMConfig, err error) {
	name, err := gguf.Required[string](f, "general.architecture")
	if err != nil {
		return c, err
	}
	if name != "mamba" {
		return c, fmt.Errorf("general.architecture is %.40q, want mamba", name)
	}
	for key, to := range map[string]*int{
		"block_count": &c.NLayer, "embedding_length": &c.DModel, "ssm.inner_size": &c.DInner, "ssm.state_size": &c.DState, "ssm.conv_kernel": &c.DConv,
		"ssm.time_step_rank": &c.DtRank,
	} {
		n, wrong := gguf.Size(f, "mamba."+key)
		if *to = n; wrong != nil && (err == nil || wrong.Error() < err.Error()) { // the same of several, in any order
			err = wrong
		}
	}
	if err != nil {
		return c, err
	}
	if c.Expand = 2; c.DInner == 2*c.DModel {
		c.DInner = 0
	}
	eps, err := gguf.Required[float64](f, "mamba.attention.layer_norm_rms_epsilon")
	if err == nil && !(eps > 0 && eps < 1) {
		err = fmt.Errorf("mamba.attention.layer_norm_rms_epsilon is %v, want a number between 0 and 1", eps)
	}
	if err != nil {
		return c, err
	}
	c.NormEps = eps
	falcon, _, err := gguf.Value[bool](f, "mamba.ssm.dt_b_c_rms")
	if err == nil && falcon {
		err = errors.New("mamba.ssm.dt_b_c_rms is true, a Falcon-Mamba, want false")
	}
	return c, err
}

// vocabulary returns the number of tokens that the metadata has.
func vocabulary(f *gguf.File) (n int, known bool, err error) {
	tokens, known, err := gguf.Value[[]string](f, "tokenizer.ggml.tokens")
	if known || err != nil {
		return len(tokens), known, err
	}
	size, known, err := gguf.Value[uint64](f, "mamba.vocab_size")
	if size > math.MaxInt32 {
		err = fmt.Errorf("mamba.vocab_size is %d, want at most %d", size, math.MaxInt32)
	}
	return int(size), known, err
}

// ggufNames are the parts of names that GGUF files have instead of those of the Hugging Face layout.
var ggufNames = strings.NewReplacer(
	"backbone.embeddings.", "token_embd.", "backbone.norm_f.", "output_norm.", "lm_head.", "output.", "backbone.layers.", "blk.",
	".norm.", ".attn_norm.", ".mixer.A_log", ".ssm_a", ".mixer.D", ".ssm_d", ".mixer.conv1d.", ".ssm_conv1d.", ".mixer.in_proj.", ".ssm_in.",
	".mixer.x_proj.", ".ssm_x.", ".mixer.dt_proj.", ".ssm_dt.", ".mixer.out_proj.", ".ssm_out.",
)

// matchGGUF fills from with the tensors that a model wants.
func matchGGUF(tensors map[string]*gguf.Tensor, wants []tensorfile.Want, from map[string]*gguf.Tensor) error {
	var m tensorfile.Misfit
	used := map[string]bool{}
	for _, w := range wants {
		name := ggufNames.Replace(w.Name)
		shape := w.Shape
		if len(shape) == 3 { // a convolution's (channels, 1, width)
			shape = []int{shape[0], shape[2]}
		}
		t := tensors[name]
		used[name] = true
		switch {
		case t == nil:
			m.Missing = append(m.Missing, fmt.Sprintf("%s %v", name, shape))
			continue
		case !slices.Equal(t.Shape, shape):
			m.Misshapen = append(m.Misshapen, fmt.Sprintf("%s is %v, want %v", name, t.Shape, shape))
		case t.Type != blas.Float32 && !isProduct(w.Name):
			m.Misshapen = append(m.Misshapen, fmt.Sprintf("%s is of %v, want float32", name, t.Type))
		}
		from[w.Name] = t
	}
	for name := range tensors {
		if !used[name] {
			m.Superfluous = append(m.Superfluous, name)
		}
	}
	slices.Sort(m.Superfluous)
	return m.Err()
}
