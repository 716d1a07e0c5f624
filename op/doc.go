// Package op provides Gorgonia operators for sequence models: the selective scan, a whole Mamba block, causal convolution, S4, causal
// attention, LSTM, and the operators around them, such as Linear, RMSNorm, Dropout, MeanPool, Embedding and CrossEntropy.
//
// Each operator checks its operands when it is added to a graph. An error names the operand, what it was, and what it should be. The operands of
// an operator are all float32 or all float64, except integers, and marks such as Start, which may be of either type or of int.
//
// Each operator is differentiable under the tape machine (with gorgonia.Grad) and, on the host, the lisp machine. Every operand has a gradient,
// except integers and marks, and the gradients of all results flow back. Results and gradients are the same bit for bit for any number of
// processors, if the BLAS in use computes the same products for any number.
//
// The last axis of a sequence is channels, (batch, length, channels), in every operator; Linear alone has in and out. A width is the number of taps
// of a convolution.
//
// An operator runs where its operands are: on the host, or on a GPU in float32. [On] returns the place of a GPU, [Place.Upload] copies the value
// of a node there, and [Download] copies it back. The arithmetic is in internal/kernel for the host, and in package cuda for a GPU.
package op
