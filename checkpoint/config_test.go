package checkpoint

import (
	"reflect"
	"strings"
	"testing"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/nn"
)

// lmTensors lists the weights that NewLM makes.
func TestLMTensors(t *testing.T) {
	for _, cfg := range someConfigs() {
		lm := nn.NewLM(cfg)
		if lm.Err() != nil {
			t.Fatal(lm.Err())
		}
		wants := lmTensors(lm.Config())
		if len(wants) != len(lm.Params()) {
			t.Errorf("%+v: %d tensors, want %d", cfg, len(wants), len(lm.Params()))
		}
		for _, w := range wants {
			p := lm.Params().ByName(w.Name)
			if p == nil || !p.Value.Shape().Eq(tensor.Shape(w.Shape)) {
				t.Errorf("%+v: %s is %v, the model has %v", cfg, w.Name, w.Shape, p)
			}
		}
	}
}

// The configuration of the model has the values of config.json.
func TestConfig(t *testing.T) {
	defaults := nn.LMConfig{Config: nn.Config{
		DModel: 768, NLayer: 32, DState: 16, DConv: 4, Expand: 2, DtRank: 48,
		DtMin: 0.001, DtMax: 0.1, DtScale: 1, DtInitFloor: 1e-4, NormEps: 1e-5,
	}, Vocab: 50280}
	with := func(change func(c *nn.LMConfig)) nn.LMConfig {
		c := defaults
		change(&c)
		return c
	}
	originals := with(func(c *nn.LMConfig) { c.DModel, c.DtRank, c.NLayer = 2560, 160, 64 })
	for text, want := range map[string]nn.LMConfig{
		`{"model_type": "mamba"}`:                                           defaults,
		`{"hidden_size": 768, "hidden_act": "swish", "_note": "x"}`:         defaults,
		`{"hidden_size": 768, "time_step_rank": "auto", "foo": null}`:       defaults,
		`{"hidden_size": 768.0, "expand": 2.0, "layer_norm_epsilon": null}`: defaults,
		`{"hidden_size": 33, "state_size": 8, "num_hidden_layers": 5, "conv_kernel": 3, "expand": 3, "time_step_rank": 7,
		  "layer_norm_epsilon": 1e-6, "vocab_size": 97, "use_bias": true, "use_conv_bias": false, "tie_word_embeddings": false,
		  "residual_in_fp32": false, "time_step_min": 0.01, "time_step_max": 0.5, "time_step_scale": 2, "time_step_floor": 0.1}`: {
			Config: nn.Config{
				DModel: 33, NLayer: 5, DState: 8, DConv: 3, Expand: 3, DtRank: 7, Bias: true, NoConvBias: true, NormEps: 1e-6,
				DtMin: 0.01, DtMax: 0.5, DtScale: 2, DtInitFloor: 0.1,
			}, Vocab: 97, UntiedHead: true,
		},
		`{"hidden_size": 768, "intermediate_size": 1536}`: defaults,
		`{"hidden_size": 768, "intermediate_size": 1000}`: with(func(c *nn.LMConfig) { c.DInner = 1000 }),
		// as the converted checkpoints of state-spaces have it
		`{"model_type": "mamba", "hidden_size": 768, "d_model": 768, "n_layer": 32, "d_inner": 1536, "ssm_cfg": {}, "rms_norm": true,
		  "fused_add_norm": true, "pad_vocab_size_multiple": 8, "residual_in_fp32": true, "torch_dtype": "float32"}`: defaults,
		`{"d_model": 2560}`: originals,
		`{"d_model": 2560, "ssm_cfg": {"layer": "Mamba1", "dt_rank": "auto", "dt_init": "random", "use_fast_path": true},
		  "attn_layer_idx": [], "attn_cfg": {}, "d_intermediate": 0, "tie_embeddings": true}`: originals,
		`{"d_model": 2560, "vocab_size": 50288}`:                               with(func(c *nn.LMConfig) { c.DModel, c.DtRank, c.NLayer, c.Vocab = 2560, 160, 64, 50288 }),
		`{"d_model": 2560, "vocab_size": 50289, "pad_vocab_size_multiple": 1}`: with(func(c *nn.LMConfig) { c.DModel, c.DtRank, c.NLayer, c.Vocab = 2560, 160, 64, 50289 }),
		`{"d_model": 32, "n_layer": 3, "vocab_size": 93, "tie_embeddings": false, "residual_in_fp32": false,
		  "ssm_cfg": {"d_state": 8, "d_conv": 2, "expand": 3, "dt_rank": 5, "bias": true, "conv_bias": false, "dt_min": 0.01,
		  "dt_max": 0.2, "dt_scale": 3, "dt_init_floor": 0.001}}`: {
			Config: nn.Config{
				DModel: 32, NLayer: 3, DState: 8, DConv: 2, Expand: 3, DtRank: 5, Bias: true, NoConvBias: true, NormEps: 1e-5,
				DtMin: 0.01, DtMax: 0.2, DtScale: 3, DtInitFloor: 0.001,
			}, Vocab: 96, UntiedHead: true,
		},
	} {
		c, err := parseConfig([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
		} else if !reflect.DeepEqual(c.lm, want) {
			t.Errorf("%s:\n%+v, want\n%+v", text, c.lm, want)
		}
	}
}

// An option that is not supported, or not known, is an error that names it.
func TestUnsupportedConfig(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                       "neither hidden_size nor d_model",
		`null`:                     "neither hidden_size nor d_model",
		`[]`:                       "config.json",
		`{"hidden_size": `:         "config.json",
		`{"model_type": "mamba2"}`: `model_type is "mamba2", want no other than "mamba"`,
		`{"model_type": "falcon_mamba", "hidden_size": 8}`:       `model_type is "falcon_mamba"`,
		`{"hidden_size": 8, "hidden_act": "gelu"}`:               `hidden_act is "gelu", want no other than "silu" or "swish"`,
		`{"hidden_size": 8, "mixer_rms_eps": 1e-6}`:              `mixer_rms_eps is 1e-6, an option that is not supported`,
		`{"hidden_size": 8, "quantization_config": {"bits": 4}}`: `quantization_config is {"bits": 4}, an option`,
		`{"hidden_size": 8, "auto_map": {}}`:                     `auto_map`,
		`{"hidden_size": 8, "rms_norm": false}`:                  `rms_norm is false`,
		`{"hidden_size": 8, "d_model": 9}`:                       `d_model is 9, want 8`,
		`{"hidden_size": 8, "n_layer": 9}`:                       `n_layer is 9, want 32`,
		`{"hidden_size": 8, "d_inner": 9}`:                       `d_inner is 9, want 16`,
		`{"hidden_size": 8, "tie_embeddings": false}`:            `tie_embeddings is false`,
		`{"hidden_size": 8, "ssm_cfg": {"d_state": 8}}`:          `ssm_cfg.d_state is 8, want 16`,
		`{"hidden_size": 8, "ssm_cfg": {"dt_rank": 8}}`:          `ssm_cfg.dt_rank is 8, want 1`,
		`{"hidden_size": 8, "ssm_cfg": {"bias": true}}`:          `ssm_cfg.bias is true`,
		`{"hidden_size": 8, "ssm_cfg": {"layer": "Mamba2"}}`:     `ssm_cfg.layer is "Mamba2"`,
		`{"hidden_size": 8, "ssm_cfg": 3}`:                       `ssm_cfg is 3, want an object`,
		`{"hidden_size": 0}`:                                     `hidden_size is 0, want a whole number`,
		`{"hidden_size": -8}`:                                    `hidden_size is -8`,
		`{"hidden_size": 8.5}`:                                   `hidden_size is 8.5`,
		`{"hidden_size": "8"}`:                                   `hidden_size is "8"`,
		`{"hidden_size": 1e300}`:                                 `hidden_size is 1e300`,
		`{"hidden_size": 1e999}`:                                 `hidden_size is 1e999`,
		`{"hidden_size": 9223372036854775807}`:                   `hidden_size is 9223372036854775807`,
		`{"hidden_size": 268435456, "expand": 268435456}`:        `expand is 268435456`,
		`{"hidden_size": 8, "intermediate_size": 0}`:             `intermediate_size is 0`,
		`{"hidden_size": 8, "time_step_rank": 0}`:                `time_step_rank is 0`,
		`{"hidden_size": 8, "time_step_rank": "many"}`:           `time_step_rank is "many"`,
		`{"hidden_size": 8, "layer_norm_epsilon": 0}`:            `layer_norm_epsilon is 0, want a positive number`,
		`{"hidden_size": 8, "time_step_min": 1}`:                 `time_step_min is 1, want at most time_step_max`,
		`{"hidden_size": 8, "use_bias": "no"}`:                   `use_bias is "no", want true or false`,
		`{"hidden_size": 8, "use_conv_bias": 1}`:                 `use_conv_bias is 1`,
		`{"hidden_size": 8, "tie_word_embeddings": 1}`:           `tie_word_embeddings is 1`,
		`{"hidden_size": 8, "residual_in_fp32": 1}`:              `residual_in_fp32 is 1`,
		`{"d_model": 8, "rms_norm": false}`:                      `rms_norm is false, want no other than true`,
		`{"d_model": 8, "d_intermediate": 64}`:                   `d_intermediate is 64`,
		`{"d_model": 8, "attn_layer_idx": [1]}`:                  `attn_layer_idx is [1]`,
		`{"d_model": 8, "ssm_cfg": {"layer": "Mamba2"}}`:         `ssm_cfg.layer is "Mamba2"`,
		`{"d_model": 8, "ssm_cfg": {"headdim": 64}}`:             `ssm_cfg.headdim is 64, an option that is not supported`,
		`{"d_model": 8, "layer_norm_epsilon": 1e-6}`:             `layer_norm_epsilon is 1e-6, an option that is not supported`,
		`{"d_model": 8, "vocab_size": 0}`:                        `vocab_size is 0`,
		`{"d_model": 8, "pad_vocab_size_multiple": 0}`:           `pad_vocab_size_multiple is 0`,
	} {
		if _, err := parseConfig([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	_, err := parseConfig([]byte(`{"hidden_size": 8, "hidden_act": "gelu", "rms_norm": false, "foo": 1}`))
	for _, name := range []string{"hidden_act", "rms_norm", "foo"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%v does not name %s", err, name)
		}
	}
}

// If use_bias is missing, the tensors show whether there are biases, since versions of transformers differ in the default.
func TestBiasFromWeights(t *testing.T) {
	for _, bias := range []bool{false, true} {
		dir := t.TempDir()
		want := nn.NewLM(nn.LMConfig{Config: nn.Config{DModel: 4, Bias: bias}, Vocab: 5})
		if err := Save(dir, want); err != nil {
			t.Fatal(err)
		}
		setOptions(t, dir, map[string]any{"use_bias": nil})
		lm, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		sameWeights(t, lm.Params(), want.Params())
	}
}
