// Package mamba is the front page of Mamba for Gorgonia: sequence models as operators, layers and models for gorgonia.org/gorgonia.
// It has no code.
//
// If you have a model as a Gorgonia graph, begin with package nn: put a MambaBlock or a MambaStack into the graph, and train it with
// Gorgonia's machines and solvers as before.
//
//	block := nn.NewMambaBlock(nn.Config{DModel: 64})
//	y, err := block.Apply(x) // (batch, length, 64) to the same shape
//
// The packages for programs:
//
//	nn          MambaBlock, MambaStack, LM (a language model), Generator (prompts to tokens), Stepper (one token at a time)
//	vision      models of images, and metrics of classification and segmentation
//	images      images and volumes: files, labels, augmentation, batches, sliding windows
//	layer       layers with weights: linear, norms, Mamba, S4, S6, H3, attention, LSTM; LoRA; frozen weights
//	op          the operators: SelectiveScan and its neighbours, on the host and on a GPU
//	train       AdamW, and a training loop for any loss, which can be stopped and resumed; LoRA in files
//	dist        the processes of a distributed run, over MPI: sums, gathers, broadcasts
//	dist/disttest goroutines as ranks, for tests
//	checkpoint  pretrained weights: Load, Save, and parts by prefix
//	tokens      tokenizers, and models from the Hugging Face hub
//	task        data: text as bytes, and synthetic tasks
//	report      progress and pictures of a training run
//	grad        Check compares symbolic gradients with finite differences, for any function of nodes
//	blas        float32 matrix products, for all of Gorgonia
//	cuda        an NVIDIA GPU, without Gorgonia
//
// The README shows them at work. ARCHITECTURE.md describes how they depend on each other. docs/guide.md explains the models.
package mamba
