// Package train trains models.
//
// AdamW is a solver for Gorgonia's graphs. It takes the place of one of Gorgonia's solvers in any program.
//
// Trainer is the training loop. NewTrainer makes one for any loss over a graph and any source of batches: a Problem. New makes one for a
// language model, and packs documents into sequences. A Trainer adds up the gradients of several batches, evaluates on held-out
// batches, and reports the losses. It saves everything that the run depends on. A run that is stopped or killed and then resumed ends
// with the same weights, bit for bit.
//
// SaveLoRA and LoadLoRA keep the LoRA of a model (layer.Params.AddLoRA) in files of the peft library's layout.
package train
