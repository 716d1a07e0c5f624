package kernel

// ScanStep is one step of a selective scan in float32, as Scan with Δ through softplus, D, z, a bias of Δ, and one group. Its states lie
// as the kernels process them, (strips, state, lanes), where a strip is 16 channels, so that a step transposes nothing. It computes what a
// Scan of length 1 computes, bit for bit.
type ScanStep struct {
	Channels, State int
	D, DeltaBias    []float32 // (channels)

	a      []float32 // (strips, state, lanes): A, times log2 e if the level has assembly
	stride int       // between strips of a and of the states
}

// ScanStepRow has the operands of one sequence: slices of all channels, and B and C (state). Y is written.
type ScanStepRow struct {
	U, Delta, Z, Y []float32
	B, C           []float32
	Before, After  []float32 // (strips, state, lanes): the state; After may be Before. Strips are as far apart as those of A
}

// ScanStepper is the working memory of a goroutine that computes steps.
type ScanStepper struct {
	dt, du, y [stepStrips * lanes]float32
	asm       scanStepAsm
}

// stepStrips is the number of strips whose Δ and gates are computed together.
const stepStrips = 16

// Strips returns the number of strips of some channels.
func Strips(channels int) int { return (channels + lanes - 1) / lanes }

// StripLanes is the number of channels of a strip.
const StripLanes = lanes

// StripSize returns the number of elements of a strip of a state.
func StripSize(state int) int { return state * lanes }

// LayState transposes a state from (channels, state) to strips.
func (s *ScanStep) LayState(to, from []float32) {
	s.eachStrip(func(st *strip[float32], at int) { st.load(to[at:][:s.State*lanes], from, s.State) })
}

// UnlayState transposes a state from strips to (channels, state).
func (s *ScanStep) UnlayState(to, from []float32) {
	s.eachStrip(func(st *strip[float32], at int) { st.store(to, from[at:], s.State) })
}

func (s *ScanStep) eachStrip(do func(st *strip[float32], at int)) {
	for i := range Strips(s.Channels) {
		do(&strip[float32]{first: i * lanes, width: min(lanes, s.Channels-i*lanes)}, i*s.stride)
	}
}

// SetA sets the strips [from, to) of A = -exp(aLog), for aLog (channels, state).
func (s *ScanStep) SetA(aLog []float32, from, to int) {
	if s.a == nil {
		panic("kernel: ScanStep.SetA before NewScanStep") // our own bug
	}
	for i := from; i < to; i++ {
		st := strip[float32]{first: i * lanes, width: min(lanes, s.Channels-i*lanes)}
		a := s.a[i*s.stride:][:s.State*lanes]
		st.load(a, aLog, s.State)
		negExpOf(a, a) // lanes without a channel get -1, which nobody reads
		scanStepScale(a)
	}
}

// NewScanStep returns a step that has its A, which SetA sets, in a. The strips of a are stride elements apart, and so are those of the states: at least
// StripSize(state). Between two strips of a may be those of the states, so that a step reads one piece of memory.
func NewScanStep(channels, state int, d, deltaBias, a []float32, stride int) *ScanStep {
	return &ScanStep{Channels: channels, State: state, D: d, DeltaBias: deltaBias, a: a, stride: stride}
}

// Advance computes the strips [from, to) of a row.
func (s *ScanStep) Advance(w *ScanStepper, r *ScanStepRow, from, to int) {
	for ; from < to; from += stepStrips {
		s.advance(w, r, from, min(from+stepStrips, to))
	}
}

func (s *ScanStep) advance(w *ScanStepper, r *ScanStepRow, from, to int) {
	first := from * lanes
	n := min(to*lanes, s.Channels) - first
	if size := s.State * lanes; &r.Before[0] != &r.After[0] {
		for at := from * s.stride; at < to*s.stride; at += s.stride {
			copy(r.After[at:at+size], r.Before[at:])
		}
	}
	delta := w.dt[:n]
	sumOf(delta, r.Delta[first:first+n], s.DeltaBias[first:first+n])
	if s.advanceAsm(w, r, from, to, n) {
		return
	}
	for i := range delta {
		delta[i] = softplus(delta[i])
		w.du[i] = delta[i] * r.U[first+i]
		w.y[i] = 0
	}
	for i := from; i < to; i++ {
		at := (i - from) * lanes
		k := min(lanes, n-at)
		dt, du, acc := w.dt[at:at+k], w.du[at:at+k], w.y[at:at+k]
		for j := range s.State {
			a, h := s.a[i*s.stride+j*lanes:][:k], r.After[i*s.stride+j*lanes:][:k]
			b, c := r.B[j], r.C[j]
			for l := range h {
				h[l] = exp(dt[l]*a[l])*h[l] + du[l]*b
				acc[l] += c * h[l]
			}
		}
	}
	for i := range n {
		acc := w.y[i]
		acc += s.D[first+i] * r.U[first+i]
		r.Y[first+i] = acc * silu(r.Z[first+i])
	}
}
