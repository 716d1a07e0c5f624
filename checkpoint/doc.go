// Package checkpoint reads and writes weights.
//
//	lm, err := checkpoint.Load(dir)   // *nn.LM
//	err = checkpoint.Save(dir, lm)
//
// Load reads two layouts. The Hugging Face layout has config.json, and model.safetensors or several files with
// model.safetensors.index.json. The layout of state-spaces/mamba has a config.json with d_model and n_layer, whose vocabulary is
// padded, and pytorch_model.bin. Numbers on file are float32, float16, bfloat16 or float64. Save writes the Hugging Face layout.
//
// Load maps files into memory where the system can, and reads them piece by piece into the weights. There is never a second copy of
// the model.
//
// Parts of a model load too. Open opens a checkpoint, and Reader.LoadInto fills the weights of a block, a stack or a layer, by prefix.
// Params().Freeze() then keeps them as they are. SaveParams and Reader.LoadParams save and load the weights of any model.
//
// Files are not trusted. A pickle is read as data: nothing in it is called, and anything but tensors is an error that names it. No
// number in a file is believed before it is compared with the size of the file. Symbolic links that lead out of the directory are
// errors, except within the cache of Hugging Face. A weight that is not a number is an error.
//
// An option of config.json changes the model, or is known to change nothing, or is an error that names it.
package checkpoint
