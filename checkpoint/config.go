package checkpoint

import (
	"fmt"

	"github.com/gomamba/mamba/internal/jsonoptions"
	"github.com/gomamba/mamba/nn"
)

// config is the contents of a config.json.
type config struct {
	lm        nn.LMConfig
	biasKnown bool // whether the file says if the layers have biases; otherwise the names of the tensors show it
}

// options are the fields of a config.json.
type options struct{ *jsonoptions.Options }

// rank reads a size that may be "auto", which is the width of the model divided by 16, rounded up.
func (o options) rank(name string, model int) int {
	auto := (model + 15) / 16
	if o.Has(name) && o.Text(name) == `"auto"` {
		return auto
	}
	return o.Size(name, auto, 1)
}

// parseConfig reads a configuration in the Hugging Face layout (MambaConfig of transformers) or in the original one
// (MambaConfig of state-spaces/mamba).
func parseConfig(text []byte) (*config, error) {
	parsed, err := jsonoptions.Parse(configFile, text)
	if err != nil {
		return nil, err
	}
	o := options{parsed}
	// All options of another model would be wrong. One error that names the model is enough.
	if o.Only("model_type", `"mamba"`); o.Err() != nil {
		return nil, o.Err()
	}
	var c *config
	switch {
	case o.Has("hidden_size") || o.Has("model_type") && !o.Has("d_model"):
		c = huggingFaceConfig(o)
	case o.Has("d_model"):
		c = originalConfig(o)
	default:
		return nil, fmt.Errorf("config.json has neither hidden_size nor d_model, want one of them, as in the configuration of a Mamba model")
	}
	o.Unknown()
	return c, o.Err()
}

// notes are fields that any configuration of transformers may have. None of them changes the result of the model: they describe its
// origin, its special tokens, what the forward pass returns in addition to the logits, and the defaults of generation and training.
const notes = `architectures transformers_version torch_dtype dtype tokenizer_class
	bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id
	use_cache return_dict output_hidden_states output_attentions torchscript
	is_decoder is_encoder_decoder chunk_size_feed_forward task_specific_params problem_type finetuning_task
	id2label label2id num_labels
	max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature
	top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
	bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
	remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens prefix
	initializer_range rescale_prenorm_residual time_step_init_scheme use_mambapy use_associative_scan`

// residual is an option whose value does not matter here. Weights in memory are float32 or float64, whatever they are on file, and
// the residual stream has the same type.
const residual = "residual_in_fp32"

func huggingFaceConfig(o options) *config {
	o.Ignore(notes)
	c := &config{biasKnown: o.Has("use_bias")}
	c.lm.DModel = o.Size("hidden_size", 768, 1)
	c.lm.NLayer = o.Size("num_hidden_layers", 32, 1)
	c.lm.DState = o.Size("state_size", 16, 1)
	c.lm.DConv = o.Size("conv_kernel", 4, 1)
	c.lm.DtRank = o.rank("time_step_rank", c.lm.DModel)
	c.lm.Vocab = o.Size("vocab_size", 50280, 1)
	c.lm.NormEps = o.Positive("layer_norm_epsilon", 1e-5)
	c.lm.Bias = o.Truth("use_bias", false)
	c.lm.NoConvBias = !o.Truth("use_conv_bias", true)
	c.lm.UntiedHead = !o.Truth("tie_word_embeddings", true)
	o.Truth(residual, true)
	o.Only("hidden_act", `"silu"`, `"swish"`)
	o.expand(c)
	if o.Has("intermediate_size") {
		c.lm.DInner = o.Size("intermediate_size", 1, 1)
		if c.lm.DInner == c.lm.Expand*c.lm.DModel {
			c.lm.DInner = 0
		}
	}
	o.steps(c, "time_step_min", "time_step_max", "time_step_scale", "time_step_floor")

	// Converted checkpoints also have the options of the original layout. Their values must agree.
	o.Only("rms_norm", "true")
	o.Truth("fused_add_norm", true)
	o.Size("pad_vocab_size_multiple", 8, 1) // vocab_size includes the padding
	o.same("d_model", c.lm.DModel)
	o.same("d_inner", inner(c.lm.Config))
	o.same("n_layer", c.lm.NLayer)
	o.Only("tie_embeddings", fmt.Sprint(!c.lm.UntiedHead))
	ssm := options{o.Part("ssm_cfg")}
	ssm.same("d_state", c.lm.DState)
	ssm.same("d_conv", c.lm.DConv)
	ssm.same("expand", c.lm.Expand)
	if ssm.Has("dt_rank") && ssm.Text("dt_rank") != `"auto"` {
		ssm.same("dt_rank", c.lm.DtRank)
	}
	ssm.Only("bias", fmt.Sprint(c.lm.Bias))
	ssm.Only("conv_bias", fmt.Sprint(!c.lm.NoConvBias))
	ssm.finish()
	return c
}

func originalConfig(o options) *config {
	o.Ignore(notes)
	c := &config{biasKnown: true}
	c.lm.DModel = o.Size("d_model", 2560, 1)
	c.lm.NLayer = o.Size("n_layer", 64, 1)
	c.lm.UntiedHead = !o.Truth("tie_embeddings", true)
	c.lm.NormEps = 1e-5 // this layout has no option for it
	o.Truth(residual, true)
	o.Truth("fused_add_norm", true) // it chooses an implementation and does not change the result
	o.Only("rms_norm", "true")
	o.Only("d_intermediate", "0")
	o.Only("attn_layer_idx", "[]")
	o.Only("attn_cfg", "{}")
	c.lm.Vocab = o.Size("vocab_size", 50277, 1)
	if multiple := o.Size("pad_vocab_size_multiple", 8, 1); c.lm.Vocab%multiple != 0 {
		c.lm.Vocab += multiple - c.lm.Vocab%multiple
	}
	ssm := options{o.Part("ssm_cfg")}
	c.lm.DState = ssm.Size("d_state", 16, 1)
	c.lm.DConv = ssm.Size("d_conv", 4, 1)
	c.lm.DtRank = ssm.rank("dt_rank", c.lm.DModel)
	c.lm.Bias = ssm.Truth("bias", false)
	c.lm.NoConvBias = !ssm.Truth("conv_bias", true)
	ssm.expand(c)
	ssm.steps(c, "dt_min", "dt_max", "dt_scale", "dt_init_floor")
	ssm.finish()
	return c
}

// finish reads the remaining fields of an ssm_cfg.
func (o options) finish() {
	o.Only("layer", `"Mamba1"`)
	o.Ignore("dt_min dt_max dt_init dt_scale dt_init_floor use_fast_path")
	o.Unknown()
}

// expand reads the number of channels inside a block, as a multiple of the width of the model.
func (o options) expand(c *config) {
	c.lm.Expand = o.Size("expand", 2, 1)
	if c.lm.Expand > jsonoptions.MaxSize/c.lm.DModel {
		o.Fail("expand", fmt.Sprintf("at most %d channels inside a block", jsonoptions.MaxSize))
		c.lm.Expand = 1
	}
}

// steps reads the range of the initial steps Δ. It has no effect on a trained model.
func (o options) steps(c *config, low, high, scale, floor string) {
	c.lm.DtMin = o.Positive(low, 0.001)
	c.lm.DtMax = o.Positive(high, 0.1)
	c.lm.DtScale = o.Positive(scale, 1)
	c.lm.DtInitFloor = o.Positive(floor, 1e-4)
	if c.lm.DtMin > c.lm.DtMax {
		o.Fail(low, "at most "+high)
	}
}

// same checks that a field, if the file has it, is equal to a size that is already known.
func (o options) same(name string, size int) {
	if o.Has(name) && o.Size(name, size, 0) != size {
		o.Fail(name, fmt.Sprintf("%d as in the rest of the configuration", size))
	}
}

func inner(c nn.Config) int {
	if c.DInner > 0 {
		return c.DInner
	}
	return c.Expand * c.DModel
}
