// Package layer has the layers that models are built from, and their weights.
//
// Weights are separate from graphs. A Param is a tensor with a name. When a layer is applied, its weights become inputs of the
// graph. So a training graph, an evaluation graph with another batch and length, and a graph of a single step share the weights
// without copies. Two layers in one graph never share a weight by mistake, even if they have the same name.
//
// Layers implement the interface of golgi, Gorgonia's layer library (Model, Fwd, Name, Describe). Their method Apply takes a node
// and returns a node and an error. Constructors return one value, as in golgi. If a configuration is invalid, the layer keeps the
// error: Err and every use of the layer return it.
//
// Each layer has a configuration of its own, such as AttentionConfig. Options are what all layers have: name, type, seed and place. Layers
// over time are Mixers. A Mixer carries a State, which has a node for each of its Slots.
//
// A layer with OnDevice has its weights on a GPU and computes there. If its input comes from the host, its result goes back to the host.
package layer
