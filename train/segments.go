package train

import (
	"fmt"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/nn"
)

// segments is a Source of this rank's steps of the batches of another one.
type segments struct {
	Source
	group *dist.Group
}

func (s segments) Next() (Batch, error) {
	b, err := s.Source.Next()
	if err != nil {
		return b, err
	}
	return segment(b, s.group)
}

// segment returns this rank's steps of a batch of tokens: a part of its columns, which the ranks have in order.
func segment(b Batch, g *dist.Group) (Batch, error) {
	var parts [3][]int
	steps := 0
	for i, name := range []string{"ids", "targets", "start"} {
		v := b.Values[name]
		if v == nil || v.Dims() != 2 {
			return b, fmt.Errorf("train: segments: a batch has no %s of shape (batch, length), want one that Pack or NewTokenBatch returned", name)
		}
		all, ok := v.Data().([]int)
		if !ok {
			return b, fmt.Errorf("train: segments: %s of a batch is of %v, want int", name, v.Dtype())
		}
		length := v.Shape()[1]
		from, to := length*g.Rank()/g.Size(), length*(g.Rank()+1)/g.Size()
		for row := 0; row < len(all); row += length {
			parts[i] = append(parts[i], all[row+from:row+to]...)
		}
		steps = to - from
	}
	return NewTokenBatch(steps, parts[0], parts[1], parts[2])
}

// divide makes a language model's trainer one of this rank's steps of each sequence.
func divide(cfg *Config, lm *nn.LM, p *Problem) (err error) {
	switch c := lm.Config(); {
	case cfg.Length < cfg.Group.Size():
		return fmt.Errorf("train: Length is %d and the group has %d ranks, want at least a step for each with Segments", cfg.Length, cfg.Group.Size())
	case c.Dropout > 0 || c.DropPath > 0:
		return fmt.Errorf("train: the model's Dropout is %v and its DropPath %v, want 0 with Segments: what they drop depends on the position in the whole sequence", c.Dropout, c.DropPath)
	}
	p.Loss = LMLoss(lm, append(cfg.Options[:len(cfg.Options):len(cfg.Options)], nn.WithSegments(cfg.Group))...)
	p.Data = segments{p.Data, cfg.Group}
	for i := range p.HeldOut {
		if p.HeldOut[i], err = segment(p.HeldOut[i], cfg.Group); err != nil {
			return err
		}
	}
	return nil
}
