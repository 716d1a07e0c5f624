package cuda

import "fmt"

// Nonlinearity is a function that is applied to each element.
type Nonlinearity int

// The nonlinearities. Those of op have the same numbers.
const (
	SiLU      Nonlinearity = iota // x·sigmoid(x)
	GELU                          // x·Φ(x), where Φ is the distribution function of the standard normal distribution
	ReLU                          // max(x, 0); its derivative at 0 is 0
	Sigmoid                       // 1/(1 + exp(-x))
	LeakyReLU                     // x, or 0.01·x if x is negative
)

func (f Nonlinearity) err() error {
	if f < SiLU || f > LeakyReLU {
		return fmt.Errorf("cuda: gate: the nonlinearity is %d, want SiLU, GELU, ReLU, Sigmoid or LeakyReLU", int(f))
	}
	return nil
}

// Gate queues y = f(gate)·x, element by element, or y = f(gate) if x is absent. y may be gate or x.
func Gate(s *Stream, f Nonlinearity, gate, x, y Array[float32]) error {
	if err := firstError(f.err(), present("gate", "gate", gate), expect("gate", "y", y.n, gate.n), optional("gate", "x", x, gate.n)); err != nil {
		return err
	}
	return s.run("gated", "gate_forward", blocksOf((gate.n+3)/4, 256), gate.address, x.address, y.address, gate.n, int32(f))
}

// GateBackward queues the gradients dgate and, unless x is absent, dx of Gate's operands, from the gradient dy of its result.
func GateBackward(s *Stream, f Nonlinearity, gate, x, dy, dgate, dx Array[float32]) error {
	if err := firstError(
		f.err(), present("gate", "gate", gate), expect("gate", "dy", dy.n, gate.n, "dgate", dgate.n, gate.n), optional("gate", "x", x, gate.n),
	); err != nil {
		return err
	}
	if !x.Absent() {
		if err := expect("gate", "dx", dx.n, gate.n); err != nil {
			return err
		}
	}
	return s.run("gated", "gate_backward", blocksOf((gate.n+3)/4, 256), gate.address, x.address, dy.address, dgate.address, dx.address, gate.n, int32(f))
}
