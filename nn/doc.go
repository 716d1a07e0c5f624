// Package nn provides modules for Gorgonia models: MambaBlock, MambaStack, and LM, a language model. Generator and Stepper generate tokens
// with an LM.
//
// The names are those of the paper (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces"):
//
//	batch, length       number of sequences in a batch; number of steps in a sequence
//	d_model             number of channels of the residual stream
//	d_inner             number of channels inside a block: expand · d_model
//	d_state, N          size of each channel's state
//	d_conv              width of the causal convolution
//	dt_rank             rank of the projection that computes Δ
//	Δ, delta            step size of the discretisation, one for each step and channel
//	A, B, C, D, z       matrices of the state space; z is the gate
//
// A block is one operator, op.MambaBlock. WithRecompute says which values its backward pass recomputes instead of keeping them.
// WithComposed builds the block from a separate operator for each operation.
//
// A stack has layers of any Kind. OnDevice makes a block, stack or model compute on a GPU.
//
// Weights are separate from graphs (package layer). You can build any number of graphs on one model, with any batch and length.
package nn
