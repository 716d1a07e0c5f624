package cuda

import "fmt"

// Scale queues y = by·weight·x, where x is rows of as many elements as weight has, or y = by·x if weight is absent. y may be x.
func Scale(s *Stream, by float32, x, weight, y Array[float32]) error {
	if err := firstError(present("scale", "x", x), expect("scale", "y", y.n, x.n), rowsOf("scale", x, weight)); err != nil {
		return err
	}
	return s.run("scale", "scale", blocksOf(x.n, 256), x.address, weight.address, y.address, x.n, max(weight.n, 1), by)
}

// ScaleBackward queues the gradients dx and, unless weight is absent, dweight of Scale's operands, from the gradient dy of its result. The sums
// are added in a fixed order.
func ScaleBackward(s *Stream, by float32, x, weight, dy, dx, dweight Array[float32]) error {
	if err := firstError(present("scale", "x", x), expect("scale", "dy", dy.n, x.n, "dx", dx.n, x.n),
		rowsOf("scale", x, weight), expect("scale", "dweight", dweight.n, weight.n)); err != nil {
		return err
	}
	if !weight.Absent() {
		// dx holds by·x·dy until the columns of it are added.
		if err := s.run("scale", "products", blocksOf(x.n, 256), x.address, dy.address, dx.address, x.n, by); err != nil {
			return err
		}
		if err := ColumnSums(s, x.n/weight.n, weight.n, dx, weight.n, dweight); err != nil {
			return err
		}
	}
	return Scale(s, by, dy, weight, dx)
}

// rowsOf returns an error if x is not rows of as many elements as weight has. weight may be absent.
func rowsOf(what string, x, weight Array[float32]) error {
	if weight.Absent() {
		return nil
	}
	if err := atLeast(1, what, "weight", weight.n); err != nil {
		return err
	}
	if x.n%weight.n != 0 {
		return fmt.Errorf("cuda: %s: x has %d elements, want a multiple of %d, those of weight", what, x.n, weight.n)
	}
	return nil
}
