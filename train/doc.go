// Package train trains models: AdamW, a solver for Gorgonia's graphs, and a loop for language models around it.
//
// AdamW takes the place of one of Gorgonia's solvers in any program. Trainer is the loop: it packs documents into
// sequences, adds up gradients over several batches, evaluates on what was held out, reports progress, and saves all that the
// run depends on, so that one that was killed and resumed ends with the same weights, bit for bit.
package train
