// Package mamba is the front page of Mamba for Gorgonia: selective state spaces as operators, layers and models of
// gorgonia.org/gorgonia.
//
// If you have a model as a Gorgonia graph, package nn is what you are looking for: drop a MambaBlock or a MambaStack into
// the graph and train it with Gorgonia's machines and solvers, as before.
//
//	block := nn.NewMambaBlock(nn.Config{DModel: 64})
//	y, err := block.Apply(x) // (batch, length, 64) to the same
//
// The packages, from the model down to the arithmetic:
//
//	nn          MambaBlock, MambaStack, LM (a language model), Stepper (one token at a time)
//	checkpoint  pretrained weights: Load, Save, and parts by prefix
//	layer       parts with parameters; weights live apart from graphs
//	op          the operators: SelectiveScan above all, and its neighbours
//	grad        Check compares symbolic gradients with finite differences, for any function of nodes
//
// The README shows them at work, ARCHITECTURE.md how they fit together, and docs/selective_scan.md derives the scan's
// backward pass.
package mamba
