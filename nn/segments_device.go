package nn

import (
	"fmt"
	"slices"
	"sync"

	G "gorgonia.org/gorgonia"
	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/cuda"
	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/internal/build"
	"github.com/gomamba/mamba/internal/operator"
	"github.com/gomamba/mamba/layer"
)

// segmentedOn is segmented for weights on a GPU.
func segmentedOn(l layer.Mixer, x *G.Node, group *dist.Group, opts []CallOption) (y *G.Node, err error) {
	place := l.Params().Place()
	n := link{group: group, id: neighbours.Add(1)}
	if n.devices, err = devicesOf(group, place.Device()); err != nil {
		return nil, err
	}
	e := build.EdgeOf(place, x)
	if x, err = e.In(x); err != nil {
		return nil, err
	}
	results, width := []tensor.Shape{x.Shape().Clone()}, 0
	for _, s := range l.Slots() {
		results = append(results, append(tensor.Shape{x.Shape()[0]}, s.Shape...))
		width += s.Shape.TotalSize()
	}
	var state layer.State
	if group.Rank() > 0 && width > 0 {
		nodes, err := operator.Apply(operator.Definition{Name: "receive a state", Float32: stateFrom{n, results[1:]}, Dtype: tensor.Float32,
			In: []operator.In{{Name: "x", Node: x, Passed: true}, {Name: "a weight", Node: anchor(l.Params()).Node(x.Graph())}}, Out: results})
		if err != nil {
			return nil, err
		}
		x, state = nodes[0], layer.State(nodes[1:])
	}
	y, next, err := l.ApplyWithState(x, state, opts...)
	if err != nil {
		return nil, err
	}
	if group.Rank() < group.Size()-1 && width > 0 {
		in := []operator.In{{Name: "y", Node: y, Passed: true}}
		for _, part := range next {
			in = append(in, operator.In{Name: "the state", Node: part})
		}
		nodes, err := operator.Apply(operator.Definition{Name: "send a state", Float32: stateTo{n}, Dtype: tensor.Float32, In: in, Out: results[:1]})
		if err != nil {
			return nil, err
		}
		y = nodes[0]
	}
	return e.Out(y)
}

// connected is the connections between the GPUs of the ranks, until the GPU is closed. A nil one says that NCCL is missing on a rank.
var connected = struct {
	sync.Mutex
	devices map[connection]*dist.Devices
}{devices: map[connection]*dist.Devices{}}

type connection struct {
	group  *dist.Group
	device *cuda.Device
}

// throughHosts is for tests: the states go through the memory of the hosts although NCCL is there.
var throughHosts bool

// devicesOf returns the connection between the GPUs of the ranks, or nil if NCCL is missing on one of them. The first call waits for the other ranks.
func devicesOf(group *dist.Group, device *cuda.Device) (*dist.Devices, error) {
	of := connection{group, device}
	connected.Lock()
	x, ok := connected.devices[of]
	connected.Unlock()
	if ok {
		return x, nil
	}
	own := []byte{1}
	if _, err := device.NewConnectionID(); err != nil || throughHosts {
		own[0] = 0
	}
	all := make([]byte, group.Size())
	if err := dist.AllGather(group, all, own); err != nil {
		return nil, err
	}
	if !slices.Contains(all, 0) {
		var err error
		if x, err = group.Devices(device); err != nil {
			return nil, err
		}
	}
	connected.Lock()
	connected.devices[of] = x
	connected.Unlock()
	device.OnClose(func() {
		connected.Lock()
		delete(connected.devices, of)
		connected.Unlock()
	})
	return x, nil
}

// link is what the two operators between two ranks share. Each passes its first operand on, which puts it in its place in the order of the machine.
type link struct {
	group   *dist.Group
	devices *dist.Devices // nil: the messages go through the memory of the hosts
	id      uint64        // no two operators are the same node
}

func (n link) GoString() string            { return fmt.Sprintf("{%d}", n.id) }
func (link) Passes() (result, operand int) { return 0, 0 }
func (link) Linear()                       {}

// Forward and Backward never run: on the host there are other operators.
func (link) Forward(_ []operator.Operand[float32], _ [][]float32)     {}
func (link) Backward(_ []operator.Operand[float32], _, _ [][]float32) {}

// move sends arrays to a rank, or receives them.
func (n link) move(s *cuda.Stream, arrays []cuda.Array[float32], rank int, receive bool) (err error) {
	for _, a := range arrays {
		switch {
		case n.devices != nil && receive:
			err = dist.ReceiveOn(n.devices, a, rank)
		case n.devices != nil:
			err = dist.SendOn(n.devices, a, rank)
		case receive:
			host := make([]float32, a.Len())
			if err = dist.Receive(n.group, host, rank); err == nil {
				err = a.CopyFrom(s, host)
			}
		default:
			host := make([]float32, a.Len())
			if err = a.CopyTo(s, host); err == nil {
				err = dist.Send(n.group, host, rank)
			}
		}
		if err != nil {
			return err
		}
	}
	if n.devices == nil {
		return nil
	}
	return n.devices.Wait()
}

// stateFrom returns its first operand, and the parts of the state that the rank before sends. Its backward pass sends their gradients there. Its other operand is the layer's anchor.
type stateFrom struct {
	link
	parts []tensor.Shape
}

func (f stateFrom) ForwardOn(s *cuda.Stream, _ cuda.Precision, _ []operator.DeviceOperand, out []cuda.Array[float32], _ bool) (operator.Kept, error) {
	return nil, f.move(s, out[1:], f.group.Rank()-1, true)
}

func (f stateFrom) BackwardOn(s *cuda.Stream, _ cuda.Precision, _ []operator.DeviceOperand, dout, grad []cuda.Array[float32], _ operator.Kept) error {
	if err := grad[1].Fill(s, 0); err != nil {
		return err
	}
	parts := slices.Clone(dout[1:])
	for i, a := range parts {
		if !a.Absent() {
			continue
		}
		zeros, err := cuda.NewArray[float32](s, f.parts[i].TotalSize())
		if err != nil {
			return err
		}
		defer zeros.Free()
		parts[i] = zeros
		if err := zeros.Fill(s, 0); err != nil {
			return err
		}
	}
	return f.move(s, parts, f.group.Rank()-1, false)
}

// stateTo returns its first operand, and sends the others, the parts of the state, to the next rank. Its backward pass receives their gradients.
type stateTo struct{ link }

func (f stateTo) ForwardOn(s *cuda.Stream, _ cuda.Precision, in []operator.DeviceOperand, _ []cuda.Array[float32], _ bool) (operator.Kept, error) {
	parts := make([]cuda.Array[float32], len(in)-1)
	for i := range parts {
		parts[i] = in[1+i].Array
	}
	return nil, f.move(s, parts, f.group.Rank()+1, false)
}

func (f stateTo) BackwardOn(s *cuda.Stream, _ cuda.Precision, _ []operator.DeviceOperand, _, grad []cuda.Array[float32], _ operator.Kept) error {
	return f.move(s, grad[1:], f.group.Rank()+1, true)
}
