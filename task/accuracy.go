package task

// Accuracy counts the predictions that are right. Its zero value is ready to use.
type Accuracy struct {
	Tokens, RightTokens       int // targets that are not Ignore, and those that were predicted
	Sequences, RightSequences int // sequences with such a target, and those in which every target was predicted
}

// Add counts predictions of whole sequences of a length, beside their targets.
func (a *Accuracy) Add(predicted, targets []int, length int) {
	for from := 0; from < len(targets); from += length {
		asked, right := 0, 0
		for i, want := range targets[from : from+length] {
			if want == Ignore {
				continue
			}
			asked++
			if predicted[from+i] == want {
				right++
			}
		}
		if asked == 0 {
			continue
		}
		a.Tokens, a.RightTokens = a.Tokens+asked, a.RightTokens+right
		a.Sequences++
		if right == asked {
			a.RightSequences++
		}
	}
}

// OfTokens returns the share of the tokens that are right, or 0 if there is no token.
func (a Accuracy) OfTokens() float64 { return share(a.RightTokens, a.Tokens) }

// OfSequences returns the share of the sequences in which all tokens are right, or 0 if there is no sequence.
func (a Accuracy) OfSequences() float64 { return share(a.RightSequences, a.Sequences) }

func share(part, of int) float64 {
	if of == 0 {
		return 0
	}
	return float64(part) / float64(of)
}

// Best returns the index of the largest logit in each row of vocab logits, as predictions for Accuracy.
func Best[T float32 | float64](logits []T, vocab int) []int {
	best := make([]int, len(logits)/vocab)
	for i := range best {
		row := logits[i*vocab : (i+1)*vocab]
		for j, v := range row {
			if v > row[best[i]] {
				best[i] = j
			}
		}
	}
	return best
}
