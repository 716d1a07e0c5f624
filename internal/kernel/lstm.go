package kernel

import (
	"math"

	"github.com/gomamba/mamba/internal/work"
)

// LSTM is the recurrence of a long short-term memory (Hochreiter and Schmidhuber, "Long Short-Term Memory"; with the forget gate
// of Gers et al., "Learning to Forget"):
//
//	i, f, o = σ(z + R h(t-1)),  g = tanh(z + R h(t-1))
//	c(t) = f c(t-1) + i g,  h(t) = o tanh(c(t))
//
// The rows of z and R are those of i, f, g and o, in this order.
type LSTM[T Float] struct {
	Batch, Length, Channels int
	Z                       []T    // (batch, length, 4·channels): the input's part of the gates before their activations
	R                       []T    // (4·channels, channels)
	H, C                    []T    // (batch, channels): the state before the first step; nil for zeros
	Start                   []bool // (batch, length): where a sequence starts; nil for none
}

// Forward writes h to y (batch, length, channels). Unless it is nil, it writes h after the last step to nextH, and c to nextC, (batch,
// channels).
func (l *LSTM[T]) Forward(y, nextH, nextC []T) {
	work.Parallel(l.Batch, func(b int) {
		w := l.Channels
		space := work.Borrow[T](5 * w)
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
		if nextH != nil {
			copy(nextH[b*w:][:w], l.before(b, l.Length, y))
		}
		if nextC != nil {
			copy(nextC[b*w:][:w], c)
		}
		space.Return()
	})
}

// Backward writes dz, dr and, unless they are nil, dh and dc: the gradients of Z, R, H and C, in their shapes. dy, dnextH and dnextC are
// the gradients of Forward's results. The last two may be nil, for zeros. Backward recomputes h and the gates.
func (l *LSTM[T]) Backward(dy, dnextH, dnextC, dz, dr, dh, dc []T) {
	w := l.Channels
	hidden := work.Borrow[T](l.Batch * l.Length * w)
	l.Forward(hidden.Data, nil, nil)
	work.Parallel(l.Batch, func(b int) { l.backward(b, hidden.Data, dy, dnextH, dnextC, dz, dh, dc) })
	work.Parallel(4*w, func(k int) {
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

func (l *LSTM[T]) backward(b int, hidden, dy, dnextH, dnextC, dz, firstH, firstC []T) {
	w := l.Channels
	space := work.Borrow[T]((l.Length+1)*w + 2*w)
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
	if dnextH != nil {
		copy(dh, dnextH[b*w:][:w])
	}
	if dnextC != nil {
		copy(dc, dnextC[b*w:][:w])
	}
	for t := l.Length - 1; t >= 0; t-- {
		d := dz[(b*l.Length+t)*4*w:][:4*w] // holds the gates, and is overwritten by their gradients
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
			if l.noCell(b, t) {
				d[w+j] = 0 // zero even if its gradient is NaN: f had no effect
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
	if firstH != nil {
		copy(firstH[b*w:][:w], dh)
	}
	if firstC != nil {
		copy(firstC[b*w:][:w], dc)
	}
	space.Return()
}

// gates writes i, f, g and o of step t to gates. h is h(t-1), nil for zeros.
func (l *LSTM[T]) gates(b, t int, h, gates []T) {
	w := l.Channels
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
	if l.noCell(b, t) {
		clear(gates[w : 2*w]) // f has no effect
	}
}

// noCell reports whether c(t-1) is zero.
func (l *LSTM[T]) noCell(b, t int) bool { return l.starts(b, t) || t == 0 && l.C == nil }

// before returns h(t-1), or nil if it is zero. The caller leaves out the products with zeros, since NaN times zero is NaN.
func (l *LSTM[T]) before(b, t int, y []T) []T {
	w := l.Channels
	switch {
	case t < l.Length && l.starts(b, t):
		return nil
	case t > 0:
		return y[(b*l.Length+t-1)*w:][:w]
	case l.H != nil:
		return l.H[b*w:][:w]
	}
	return nil
}

func (l *LSTM[T]) firstCell(b int, c []T) {
	clear(c)
	if l.C != nil {
		copy(c, l.C[b*l.Channels:][:l.Channels])
	}
}

func (l *LSTM[T]) starts(b, t int) bool { return l.Start != nil && l.Start[b*l.Length+t] }

func tanh[T Float](x T) T { return T(math.Tanh(float64(x))) }
