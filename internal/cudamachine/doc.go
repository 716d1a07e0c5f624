// Package cudamachine runs operators in Gorgonia's own CUDA machine, with the device functions that they also have for package operator's
// places. Everything but this text needs the build tag cuda (docs/cuda.md, "Gorgonia's own CUDA machine"). Without the tag nothing imports the
// package.
package cudamachine
