// Package nn holds what users drop into their models: MambaBlock, MambaStack, and LM, a language model on top.
//
// The words, after the paper (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces"):
//
//	batch, length       sequences of a batch; steps of a sequence
//	d_model             the width of the residual stream
//	d_inner             the channels inside a block: expand · d_model
//	d_state, N          the size of each channel's state
//	d_conv              the width of the causal convolution
//	dt_rank             the rank of the projection that Δ comes from
//	Δ, delta            the step size of the discretisation, one per step and channel
//	A, B, C, D, z       the state space's matrices, and the gate
//
// A block is one operator, op.MambaBlock, in both types, with state and with starts. WithRecompute says what its backward pass
// computes again instead of keeping it; WithComposed builds the block of an operator for each operation.
//
// Weights live apart from graphs (package layer): build as many graphs as you like, of any batch and length, on one model.
package nn
