// Package op holds the Gorgonia operators that a Mamba block is made of: the selective scan above all, and its neighbours.
//
// Each operator checks its operands when it is added to a graph, and its error names the operand, what it was, and what it
// should be. Each is differentiable under the tape machine (with gorgonia.Grad) and the lisp machine. Operators hold no
// arithmetic; package internal/kernel does.
package op
