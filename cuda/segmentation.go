package cuda

// NearestTargets queues to (batch, grid of to), the targets (batch, grid of from) of the nearest cells: cell i of n reads cell i·m/n of m, rounded
// down. Unused axes of a grid are 1.
func NearestTargets(s *Stream, batch int, fromGrid, toGrid [3]int, targets, to Array[int32]) error {
	n := count(batch, toGrid[0], toGrid[1], toGrid[2])
	if err := firstError(
		atLeast(0, "nearest targets", "batch", batch),
		atLeast(1, "nearest targets", "fromGrid[0]", fromGrid[0], "fromGrid[1]", fromGrid[1], "fromGrid[2]", fromGrid[2],
			"toGrid[0]", toGrid[0], "toGrid[1]", toGrid[1], "toGrid[2]", toGrid[2]),
	); err != nil {
		return err
	}
	if err := expect("nearest targets", "targets", targets.n, count(batch, fromGrid[0], fromGrid[1], fromGrid[2]), "to", to.n, n); err != nil {
		return err
	}
	return s.run("segmentation", "nearest_targets", blocksOf(n, 256), targets.address, to.address, batch,
		fromGrid[0], fromGrid[1], fromGrid[2], toGrid[0], toGrid[1], toGrid[2])
}

// BinaryCrossEntropyForward queues loss (1): the mean of log(1 + e^x) - t·x over the n logits x whose target t is not ignore, or 0 if there is no such
// target. The caller must have checked that the other targets are 0 or 1. It also writes state (1), for BinaryCrossEntropyBackward.
func BinaryCrossEntropyForward(s *Stream, n int, ignore int32, logits Array[float32], targets Array[int32], state Array[float64], loss Array[float32]) error {
	if err := checkBinary(n, logits, targets, state, "loss", loss); err != nil {
		return err
	}
	blocks := (n + 4095) / 4096
	parts, err := NewArray[float64](s, 2*blocks)
	if err != nil {
		return err
	}
	defer parts.Free()
	if n > 0 {
		if err := s.run("segmentation", "bce_parts", grid{x: int64(blocks), threads: 256}, logits.address, targets.address, parts.address, n, ignore); err != nil {
			return err
		}
	}
	return s.run("segmentation", "bce_mean", grid{x: 1, threads: 256}, parts.address, state.address, loss.address, blocks)
}

// BinaryCrossEntropyBackward queues dlogits, the gradient of the logits. dloss (1) is that of the loss, and state is of BinaryCrossEntropyForward.
func BinaryCrossEntropyBackward(s *Stream, n int, ignore int32, logits Array[float32], targets Array[int32], state Array[float64], dloss, dlogits Array[float32]) error {
	if err := firstError(checkBinary(n, logits, targets, state, "dloss", dloss), expect("binary cross-entropy", "dlogits", dlogits.n, n)); err != nil || n == 0 {
		return err
	}
	return s.run("segmentation", "bce_backward", blocksOf(n, 256), logits.address, targets.address, state.address, dloss.address, dlogits.address, n, ignore)
}

func checkBinary(n int, logits Array[float32], targets Array[int32], state Array[float64], name string, loss Array[float32]) error {
	return firstError(atLeast(0, "binary cross-entropy", "n", n),
		expect("binary cross-entropy", "logits", logits.n, n, "targets", targets.n, n, "state", state.n, 1, name, loss.n, 1))
}

// Dice is the Dice loss of op.Dice. The caller must have checked the targets.
type Dice struct {
	Images, Cells, Classes int
	Ignore                 int32
	Logits                 Array[float32] // (images, cells, classes)
	Targets                Array[int32]   // (images, cells)
}

// State returns the length of the state that Forward writes and Backward reads.
func (d *Dice) State() int {
	if d == nil {
		return 0
	}
	return count(3, max(d.overlaps(), 0))
}

// overlaps returns the number of overlaps of which the loss is the mean: one for each image if there is one class, else one for each class.
func (d *Dice) overlaps() int {
	if d.Classes == 1 {
		return d.Images
	}
	return d.Classes
}

// Forward queues loss (1), and state.
func (d *Dice) Forward(s *Stream, state Array[float64], loss Array[float32]) error {
	if err := d.check(s, state, "loss", loss); err != nil {
		return err
	}
	groups, rows := 1, d.Images*d.Cells
	if d.Classes == 1 {
		groups, rows = d.Images, d.Cells
	}
	each := (rows + 1023) / 1024
	parts, err := NewArray[float64](s, count(2, groups, each, d.Classes))
	if err != nil {
		return err
	}
	defer parts.Free()
	err = s.run("segmentation", "dice_parts", grid{x: int64(groups) * int64(each), threads: 256}, d.Logits.address, d.Targets.address, parts.address,
		rows, d.Classes, each, d.Ignore)
	if err == nil {
		err = s.run("segmentation", "dice_overlaps", grid{x: int64(d.overlaps()), threads: 256}, parts.address, state.address, d.Classes, each)
	}
	if err == nil {
		err = s.run("segmentation", "dice_loss", grid{x: 1, threads: 256}, state.address, loss.address, d.overlaps())
	}
	return err
}

// Backward queues dlogits, the gradient of the logits. dloss (1) is that of the loss.
func (d *Dice) Backward(s *Stream, state Array[float64], dloss, dlogits Array[float32]) error {
	if err := d.check(s, state, "dloss", dloss); err != nil {
		return err
	}
	if err := expect("Dice loss", "dlogits", dlogits.n, count(d.Images, d.Cells, d.Classes)); err != nil {
		return err
	}
	return s.run("segmentation", "dice_backward", blocksOf(d.Images*d.Cells, 256), d.Logits.address, d.Targets.address, state.address, dloss.address,
		dlogits.address, d.Images, d.Cells, d.Classes, d.Ignore)
}

func (d *Dice) check(s *Stream, state Array[float64], name string, loss Array[float32]) error {
	if d == nil {
		return missing("Dice loss")
	}
	if err := atLeast(1, "Dice loss", "Images", d.Images, "Cells", d.Cells, "Classes", d.Classes); err != nil {
		return err
	}
	return firstError(expect("Dice loss", "Logits", d.Logits.n, count(d.Images, d.Cells, d.Classes), "Targets", d.Targets.n, count(d.Images, d.Cells),
		"state", state.n, d.State(), name, loss.n, 1), s.usable())
}
