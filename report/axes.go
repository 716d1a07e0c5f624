package report

import (
	"math"
	"strconv"

	"gonum.org/v1/plot"
)

// scale sets the axes of a plot that knows its points: they begin and end near the points, and their ticks are round numbers.
func (p Panel) scale(pl *plot.Plot) {
	if p.LogX {
		logarithmic(&pl.X, powersOf2)
	} else {
		if pl.X.Min > 0 && pl.X.Min < pl.X.Max/3 {
			pl.X.Min = 0
		}
		linear(&pl.X, 0)
	}
	switch {
	case p.Percent:
		pl.Y.Min, pl.Y.Max = 0, max(pl.Y.Max, 100)
		linear(&pl.Y, 0)
	case p.LogY:
		logarithmic(&pl.Y, roundNumbers)
		margin := math.Pow(pl.Y.Max/pl.Y.Min, 0.04)
		pl.Y.Min, pl.Y.Max = pl.Y.Min/margin, pl.Y.Max*margin
	default:
		linear(&pl.Y, 0.04)
	}
}

// linear makes a linear axis, with a margin as a share of the range. An axis of a single number, or of two that are nearly the same, is widened.
func linear(a *plot.Axis, margin float64) {
	if size := max(math.Abs(a.Min), math.Abs(a.Max)); a.Max-a.Min <= 1e-9*size {
		half := max(size/2, 0.5)
		a.Min, a.Max = a.Min-half, a.Max+half
	}
	margin *= a.Max - a.Min
	a.Min, a.Max = a.Min-margin, a.Max+margin
	a.Tick.Marker = plot.TickerFunc(evenNumbers)
}

// logarithmic makes a logarithmic axis. An axis of a single number, or of two that are nearly the same, is widened.
func logarithmic(a *plot.Axis, ticks func(low, high float64) []plot.Tick) {
	if a.Max <= a.Min*(1+1e-9) {
		a.Min, a.Max = a.Min/2, a.Max*2
	}
	a.Scale, a.Tick.Marker = plot.LogScale{}, plot.TickerFunc(ticks)
}

func tick(value float64) plot.Tick {
	return plot.Tick{Value: value, Label: strconv.FormatFloat(value, 'g', 6, 64)}
}

// evenNumbers returns at most eight ticks, at the multiples of 1, 2, 2.5 or 5 times a power of ten. It takes the smallest
// distance that gives no more than eight.
func evenNumbers(low, high float64) (ticks []plot.Tick) {
	power := math.Pow(10, math.Floor(math.Log10(high-low))-1)
	for _, part := range []float64{1, 2, 2.5, 5, 10, 20, 25, 50} {
		step := part * power
		first, last := math.Ceil(low/step-1e-9), math.Floor(high/step+1e-9)
		if last-first >= 8 {
			continue
		}
		for i := first; i <= last; i++ {
			ticks = append(ticks, tick(i*step+0)) // and not -0
		}
		break
	}
	return ticks
}

// roundNumbers returns at most eight ticks for a logarithmic axis, from the densest set of round numbers that gives no more.
func roundNumbers(low, high float64) (ticks []plot.Tick) {
	for _, set := range [][]float64{{1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8}, {1, 1.5, 2, 3, 4, 5, 6, 8}, {1, 2, 3, 5}, {1, 3}, {1}} {
		ticks = nil
		for e := math.Floor(math.Log10(low)); e <= math.Log10(high); e++ {
			for _, m := range set {
				if v := m * math.Pow(10, e); v >= low && v <= high {
					ticks = append(ticks, tick(v))
				}
			}
		}
		if len(ticks) <= 8 {
			return ticks
		}
	}
	return thin(ticks, 8)
}

// powersOf2 returns ticks at the powers of 2, at most six of them with a label.
func powersOf2(low, high float64) (ticks []plot.Tick) {
	for e := math.Ceil(math.Log2(low) - 1e-9); e <= math.Log2(high)+1e-9; e++ {
		ticks = append(ticks, tick(math.Pow(2, e)))
	}
	return thin(ticks, 6)
}

// thin removes labels, at even distances, until no more than most are left.
func thin(ticks []plot.Tick, most int) []plot.Tick {
	every := (len(ticks) + most - 1) / most
	for i := range ticks {
		if i%every != 0 {
			ticks[i].Label = ""
		}
	}
	return ticks
}
