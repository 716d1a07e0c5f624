// Package checkpoint reads and writes weights.
//
//	lm, err := checkpoint.Load(dir)   // *nn.LM
//	err = checkpoint.Save(dir, lm)
//
// Load reads two layouts. The Hugging Face layout has config.json, and the weights in model.safetensors, or in several files with
// model.safetensors.index.json. The layout of state-spaces/mamba has a config.json with d_model and n_layer, whose vocabulary is
// padded, and the weights in pytorch_model.bin. The numbers in the files are float32, float16, bfloat16 or float64. Save writes
// the Hugging Face layout.
//
// Load maps files into memory where the system can, and reads them piece by piece into the weights. There is never a second copy
// of the model.
//
// To load a part of a model, open the checkpoint with Open. Reader.LoadInto then fills the weights of a block, a stack or a
// layer, by prefix, and Params().Freeze() excludes them from training. SaveParams and Reader.LoadParams save and load the weights
// of any model.
//
// LoadVision reads models of package vision from released files of VMamba, Vim, VM-UNet and SegMamba, and SaveVision writes them. OpenFile opens one
// such file.
//
// Files are not trusted. A pickle is read as data: nothing in it is called, and anything but tensors is an error that names it (OpenFile
// steps over other objects).
// Each number in a file is compared with the size of the file before it is used. Symbolic links that lead out of the directory
// are errors, except within the cache of Hugging Face. A weight that is not a number is an error.
//
// Every option of config.json is checked. An option that this package does not know, or cannot follow, is an error that names it.
package checkpoint
