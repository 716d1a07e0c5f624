// Package grad checks the gradients of Gorgonia functions against finite differences.
//
// Check takes a function of Gorgonia nodes, built from Gorgonia's operators or your own. It compares the gradients that Gorgonia finds
// with differences of the function's values. It does so on both of Gorgonia's machines, because they find gradients in different
// ways: the tape machine through gorgonia.Grad and an operator's SymDiff, the lisp machine through its DoDiff.
//
//	func TestMyOperator(t *testing.T) {
//		grad.MustCheck(t, grad.Single(func(in G.Nodes) (*G.Node, error) { return MyOperator(in[0], in[1]) }), []grad.Input{
//			{Name: "x", Value: x},
//			{Name: "weight", Value: weight},
//		})
//	}
//
// A check also finds what a comparison of numbers would miss: a gradient that is missing; one that is zero because an operator has no
// DoDiff; one that changes when a machine runs again; one that does not reach the dual values that solvers read; and a run that
// overwrites its inputs.
package grad
