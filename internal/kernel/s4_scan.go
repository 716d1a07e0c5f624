package kernel

import (
	"math/cmplx"

	"github.com/gomamba/mamba/internal/work"
)

// Scan computes y (batch, length, channels) step by step. Unless final is nil, it writes the state after the last step to final,
// (batch, channels, state).
func (s *S4[T]) Scan(y, final []T) {
	type channel struct {
		m []mode
		h []complex128
	}
	workspace := func() channel { return channel{make([]mode, s.Modes), make([]complex128, s.Modes)} }
	work.ParallelWith(s.Channels, workspace, func(c channel, d int) {
		m, h := c.m, c.h
		s.modes(m, d)
		for b := range s.Batch {
			s.enter(h, b, d)
			s.scanChannel(m, h, b, d, y)
			if final != nil {
				for n := range h {
					s.setComplex(final, b*s.Channels+d, n, h[n])
				}
			}
		}
	})
}

// scanChannel writes a channel of y, and advances its state h from the first step to the last.
func (s *S4[T]) scanChannel(m []mode, h []complex128, b, d int, y []T) {
	s.walk(m, h, b, d, 0, s.Length, func(t, at int) {
		sum := complex128(0)
		for n := range m {
			sum += m[n].c * h[n]
		}
		v := s.scale() * real(sum)
		if s.D != nil {
			v += float64(s.D[d]) * float64(s.U[at])
		}
		y[at] = T(v)
	})
}

// enter writes the state before the first step to h.
func (s *S4[T]) enter(h []complex128, b, d int) {
	clear(h)
	if s.Initial != nil {
		for n := range h {
			h[n] = s.complexAt(s.Initial, b*s.Channels+d, n)
		}
	}
}

// walk advances a state through the steps [from, to). After each step it calls visit with the step and its index in (batch, length,
// channels).
func (s *S4[T]) walk(m []mode, h []complex128, b, d, from, to int, visit func(t, at int)) {
	for t := from; t < to; t++ {
		at := (b*s.Length+t)*s.Channels + d
		if s.starts(b, t) {
			clear(h)
		}
		u := complex(float64(s.U[at]), 0)
		for n := range h {
			h[n] = m[n].w*h[n] + m[n].b*u
		}
		visit(t, at)
	}
}

func (s *S4[T]) starts(b, t int) bool { return s.Start != nil && s.Start[b*s.Length+t] }

// s4Tile is the number of steps between two states that the backward pass keeps. It recomputes the states between them.
const s4Tile = 64

// ScanBackward writes the gradients of all operands of Scan. dy is the gradient of y, dfinal that of the final state, nil for zeros.
func (s *S4[T]) ScanBackward(dy, dfinal []T, grad *S4Grad[T]) {
	tiles := (s.Length + s4Tile - 1) / s4Tile
	work.Parallel(s.Channels, func(d int) {
		m, g := make([]mode, s.Modes), make([]modeGrad, s.Modes)
		s.modes(m, d)
		entering := make([]complex128, tiles*s.Modes)    // the state before each tile
		states := make([]complex128, (s4Tile+1)*s.Modes) // the states before each step of the tile and after its last step
		by := make([]complex128, s.Modes)                // the gradient of the state
		dD := 0.0
		for b := range s.Batch {
			s.enter(states[:s.Modes], b, d)
			for tile := range tiles {
				copy(entering[tile*s.Modes:], states[:s.Modes])
				s.walk(m, states[:s.Modes], b, d, tile*s4Tile, min((tile+1)*s4Tile, s.Length), func(int, int) {})
			}
			clear(by)
			if dfinal != nil {
				for n := range by {
					by[n] = s.complexAt(dfinal, b*s.Channels+d, n)
				}
			}
			for tile := tiles - 1; tile >= 0; tile-- {
				from, to := tile*s4Tile, min((tile+1)*s4Tile, s.Length)
				h := states[:s.Modes]
				copy(h, entering[tile*s.Modes:])
				for t := from; t < to; t++ {
					next := states[(t-from+1)*s.Modes:][:s.Modes]
					copy(next, h)
					s.walk(m, next, b, d, t, t+1, func(int, int) {})
					h = next
				}
				for t := to - 1; t >= from; t-- {
					dD += s.stepBack(m, g, by, states[(t-from)*s.Modes:], dy, grad, b, d, t)
				}
			}
			if grad.Initial != nil {
				for n := range by {
					s.setComplex(grad.Initial, b*s.Channels+d, n, by[n])
				}
			}
		}
		if s.D != nil {
			grad.D[d] = T(dD)
		}
		s.writeGrad(grad, d, m, g)
	})
}

// stepBack turns by, the gradient of the state after step t, into the gradient of the state before it. states holds the state before and
// the state after the step. It returns the step's part of the gradient of D.
func (s *S4[T]) stepBack(m []mode, g []modeGrad, by, states []complex128, dy []T, grad *S4Grad[T], b, d, t int) (dD float64) {
	at := (b*s.Length+t)*s.Channels + d
	u, out := float64(s.U[at]), float64(dy[at])
	start := s.starts(b, t)
	du := 0.0
	for n := range m {
		before, after := states[n], states[s.Modes+n]
		if start {
			before = 0
		}
		weight := complex(s.scale()*out, 0)
		g[n].c += weight * cmplx.Conj(after)
		by[n] += weight * cmplx.Conj(m[n].c)
		g[n].w += cmplx.Conj(before) * by[n]
		g[n].b += complex(u, 0) * by[n]
		du += real(cmplx.Conj(m[n].b) * by[n])
		if start {
			by[n] = 0
		} else {
			by[n] *= cmplx.Conj(m[n].w)
		}
	}
	if s.D != nil {
		du += float64(s.D[d]) * out
	}
	grad.U[at] = T(du)
	return u * out
}
