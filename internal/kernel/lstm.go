package kernel

import "math"

// LSTM is the recurrence of a long short-term memory (Hochreiter and Schmidhuber, "Long Short-Term Memory"; with the forget gate
// of Gers et al., "Learning to Forget"):
//
//	i, f, o = σ(z + R h(t-1)),  g = tanh(z + R h(t-1)),  each with its rows of z and R, in the order i, f, g, o
//	c(t) = f c(t-1) + i g,  h(t) = o tanh(c(t))
type LSTM[T Float] struct {
	Batch, Length, Width int
	Z                    []T    // (batch, length, 4·width): what the input adds to the gates
	R                    []T    // (4·width, width)
	State                []T    // (batch, 2·width): h, and c behind it; nil for zeros
	Start                []bool // (batch, length): where a sequence starts; nil for none
}

// Forward writes h to y (batch, length, width) and the state after the last step to next, unless that is nil.
func (l *LSTM[T]) Forward(y, next []T) {
	Parallel(l.Batch, func(b int) {
		w := l.Width
		space := Borrow[T](5 * w)
		gates, c := space.Data[:4*w], space.Data[4*w:]
		l.firstCell(b, c)
		for t := range l.Length {
			h := l.before(b, t, y)
			if l.starts(b, t) {
				clear(c)
			}
			l.gates(b, t, h, gates)
			out := y[(b*l.Length+t)*w:][:w]
			for j := range w {
				c[j] = gates[w+j]*c[j] + gates[j]*gates[2*w+j]
				out[j] = gates[3*w+j] * tanh(c[j])
			}
		}
		if next != nil {
			copy(next[2*b*w:][:w], l.before(b, l.Length, y))
			copy(next[(2*b+1)*w:][:w], c)
		}
		space.Return()
	})
}

// Backward writes the gradients of what Forward read, from those of what it wrote. The gates are computed again; dnext and
// dstate may be nil.
func (l *LSTM[T]) Backward(dy, dnext, dz, dr, dstate []T) {
	w := l.Width
	hidden := Borrow[T](l.Batch * l.Length * w)
	l.Forward(hidden.Data, nil)
	Parallel(l.Batch, func(b int) { l.backward(b, hidden.Data, dy, dnext, dz, dstate) })
	Parallel(4*w, func(k int) {
		row := dr[k*w:][:w]
		clear(row)
		for b := range l.Batch {
			for t := range l.Length {
				d := dz[(b*l.Length+t)*4*w+k]
				for j, h := range l.before(b, t, hidden.Data) {
					row[j] += d * h
				}
			}
		}
	})
	hidden.Return()
}

func (l *LSTM[T]) backward(b int, hidden, dy, dnext, dz, dstate []T) {
	w := l.Width
	space := Borrow[T]((l.Length+1)*w + 2*w)
	cells, dh, dc := space.Data[:(l.Length+1)*w], space.Data[(l.Length+1)*w:][:w], space.Data[(l.Length+2)*w:][:w]
	l.firstCell(b, cells[:w])
	for t := range l.Length {
		gates := dz[(b*l.Length+t)*4*w:][:4*w]
		l.gates(b, t, l.before(b, t, hidden), gates)
		for j := range w {
			past := cells[t*w+j]
			if l.starts(b, t) {
				past = 0
			}
			cells[(t+1)*w+j] = gates[w+j]*past + gates[j]*gates[2*w+j]
		}
	}
	clear(space.Data[(l.Length+1)*w:])
	if dnext != nil {
		copy(dh, dnext[2*b*w:][:w])
		copy(dc, dnext[(2*b+1)*w:][:w])
	}
	for t := l.Length - 1; t >= 0; t-- {
		d := dz[(b*l.Length+t)*4*w:][:4*w] // the gates until here
		starts := l.starts(b, t)
		for j := range w {
			i, f, g, o := d[j], d[w+j], d[2*w+j], d[3*w+j]
			past, c := cells[t*w+j], tanh(cells[(t+1)*w+j])
			if starts {
				past = 0
			}
			e := dh[j] + dy[(b*l.Length+t)*w+j]
			dcell := dc[j] + e*o*(1-c*c)
			d[j], d[w+j] = dcell*g*i*(1-i), dcell*past*f*(1-f)
			if starts || t == 0 && l.State == nil {
				d[w+j] = 0 // even where its gradient is NaN
			}
			d[2*w+j], d[3*w+j] = dcell*i*(1-g*g), e*c*o*(1-o)
			dc[j] = dcell * f
		}
		clear(dh)
		if starts {
			clear(dc)
			continue
		}
		for k, e := range d {
			for j, r := range l.R[k*w:][:w] {
				dh[j] += e * r
			}
		}
	}
	if dstate != nil {
		copy(dstate[2*b*w:][:w], dh)
		copy(dstate[(2*b+1)*w:][:w], dc)
	}
	space.Return()
}

// gates writes i, f, g and o of step t, which has h before it.
func (l *LSTM[T]) gates(b, t int, h, gates []T) {
	w := l.Width
	z := l.Z[(b*l.Length+t)*4*w:][:4*w]
	for k := range gates {
		sum := z[k]
		for j, v := range h {
			sum += l.R[k*w+j] * v
		}
		if k/w == 2 {
			gates[k] = tanh(sum)
		} else {
			gates[k] = sigmoid(sum)
		}
	}
	if h == nil {
		clear(gates[w : 2*w]) // there is nothing to forget
	}
}

// before is h as step t finds it, nil for zeros: they are not multiplied, since a NaN times zero is one.
func (l *LSTM[T]) before(b, t int, y []T) []T {
	w := l.Width
	switch {
	case t < l.Length && l.starts(b, t):
		return nil
	case t > 0:
		return y[(b*l.Length+t-1)*w:][:w]
	case l.State != nil:
		return l.State[2*b*w:][:w]
	}
	return nil
}

func (l *LSTM[T]) firstCell(b int, c []T) {
	if l.State == nil {
		clear(c)
		return
	}
	copy(c, l.State[(2*b+1)*l.Width:][:l.Width])
}

func (l *LSTM[T]) starts(b, t int) bool { return l.Start != nil && l.Start[b*l.Length+t] }

func tanh[T Float](x T) T { return T(math.Tanh(float64(x))) }
