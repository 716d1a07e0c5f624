// Package layer holds the parts of a model that have parameters.
//
// Weights live apart from any graph: a Param is a named tensor, and a layer binds its parameters to a graph when it is
// applied there. A training graph, an evaluation graph of another batch and length and a one-step graph so share the same
// weights without copies, and two layers in one graph never collide, whatever their names.
//
// Layers satisfy the interface of Gorgonia's layer library golgi (Model, Fwd, Name, Describe), and offer a plain
// (*Node, error) call, Apply, beside it. As there, constructors return one value: what is wrong with a configuration is
// kept, and returned by Err and by every use of the layer.
package layer
