// Package checkpoint reads and writes pretrained weights.
//
//	lm, err := checkpoint.Load(dir)   // *nn.LM
//	err = checkpoint.Save(dir, lm)
//
// Load reads two layouts. Hugging Face's: config.json, and model.safetensors or shards with model.safetensors.index.json. And
// that of state-spaces/mamba: a config.json with d_model and n_layer, whose vocabulary is padded, and pytorch_model.bin. Numbers
// are float32, float16, bfloat16 or float64 on file. Files are mapped into memory where the system can, and read piece by piece
// into the model's own weights, so there is never a second copy of it. Save writes Hugging Face's layout.
//
// Parts of a model load too: Open a checkpoint, and LoadInto takes the weights of a block, a stack or a single layer by prefix.
// Params().Freeze() then keeps them as they are.
//
// Files are not trusted. A pickle is read as data: nothing in it is called, and anything but tensors is an error that names it.
// No number in a file is believed before it is held against what the file has, symbolic links do not lead out of the directory
// (except within Hugging Face's cache), and a weight that is not a number is an error.
//
// An option of config.json changes the model, or is known to change nothing, or is an error that names it.
package checkpoint
