package train

import "math"

// Point is a loss after a step. That of a language model is in nats per token.
type Point struct {
	Step int     `json:"step"`
	Loss float64 `json:"loss"`
}

// Curve holds the losses of a training run. Package report draws it.
type Curve struct {
	Training []Point `json:"training"`
	HeldOut  []Point `json:"held_out"`

	// Metrics has the values of the metrics on held-out data, by name (Call.Metric): element i is of the same evaluation as HeldOut[i].
	// It is nil if the loss has none.
	Metrics map[string][]float64 `json:"metrics,omitempty"`
}

// Mean returns the mean training loss of the last steps, or of all steps if there are fewer. It is NaN if steps is less than 1, or
// if the curve is nil or has no training point.
func (c *Curve) Mean(steps int) float64 {
	if c == nil || steps < 1 || len(c.Training) == 0 {
		return math.NaN()
	}
	last := c.Training[max(len(c.Training)-steps, 0):]
	sum := 0.0
	for _, p := range last {
		sum += p.Loss
	}
	return sum / float64(len(last))
}
