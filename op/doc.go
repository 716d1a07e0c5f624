// Package op provides Gorgonia operators for sequence models: the selective scan, a whole Mamba block, causal convolution, S4, causal
// attention, LSTM, and the operators around them, such as Linear, RMSNorm, Dropout, MeanPool, Embedding and CrossEntropy.
//
// Each operator checks its operands when it is added to a graph. An error names the operand, what it was, and what it should be. Each
// operator is differentiable under the tape machine (with gorgonia.Grad) and the lisp machine. The arithmetic is in internal/kernel.
package op
