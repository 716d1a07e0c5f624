package task

import "fmt"

// Accuracy counts how many targets were predicted right.
type Accuracy struct {
	Tokens, RightTokens       int // targets that are not nn.Ignore
	Sequences, RightSequences int // sequences with such a target; a sequence is right if all of its targets are
}

// Add counts predictions for whole sequences of a length, and their targets. Both slices have the order (batch, length).
//
// It is an error, and nothing is counted, if length is below 1, if the number of targets is not a multiple of it, or if the number of
// predictions is another.
func (a *Accuracy) Add(predicted, targets []int, length int) error {
	switch {
	case a == nil:
		return fmt.Errorf("task: accuracy: the Accuracy is nil")
	case length < 1 || len(targets)%length != 0:
		return fmt.Errorf("task: accuracy: length is %d, want at least 1, and a divisor of the %d targets", length, len(targets))
	case len(predicted) != len(targets):
		return fmt.Errorf("task: accuracy: %d predictions, want %d, one for each target", len(predicted), len(targets))
	}
	for from := 0; from < len(targets); from += length {
		asked, right := 0, 0
		for i, want := range targets[from : from+length] {
			if want == ignore {
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
	return nil
}

// OfTokens returns the share of the tokens that were predicted right, or 0 if there is no token.
func (a Accuracy) OfTokens() float64 { return share(a.RightTokens, a.Tokens) }

// OfSequences returns the share of the sequences in which every token was predicted right, or 0 if there is no sequence.
func (a Accuracy) OfSequences() float64 { return share(a.RightSequences, a.Sequences) }

func share(part, of int) float64 {
	if of == 0 {
		return 0
	}
	return float64(part) / float64(of)
}

// Best returns the index of the largest number in each row of logits (rows, vocab), as predictions for Accuracy. The first of several
// wins. It is an error if vocab is below 1, or if the logits are not whole rows.
func Best[T float32 | float64](logits []T, vocab int) ([]int, error) {
	if vocab < 1 || len(logits)%vocab != 0 {
		return nil, fmt.Errorf("task: best: vocab is %d, want at least 1, and a divisor of the %d logits", vocab, len(logits))
	}
	best := make([]int, len(logits)/vocab)
	for i := range best {
		row := logits[i*vocab : (i+1)*vocab]
		for j, v := range row {
			if v > row[best[i]] {
				best[i] = j
			}
		}
	}
	return best, nil
}
