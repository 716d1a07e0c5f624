package cuda

import (
	"fmt"
	"slices"
	"unsafe"
)

// GridScan is the selective scan over the cells of a grid in several directions at once. Each direction reads the cells in an order of its
// own and has parameters of its own. op.GridScan defines it. Operands of type T are in the order of the cells. rows is batch · cells.
type GridScan[T Activation] struct {
	Batch, Cells, Channels, State, Directions int

	Order     Array[int32]      // what GridOrders returned
	U         Array[T]          // (rows, directions·channels), or with OneU (rows, channels)
	OneU      bool              // the directions share U
	Merge     bool              // the results of the directions are added
	Delta     Array[T]          // (rows, directions·channels)
	A         Array[float32]    // (directions·channels, state)
	ALog      bool              // A holds log(-A)
	B, C      GridProjection[T] // state numbers for each direction of each row
	D         Array[float32]    // optional: (directions·channels)
	DeltaBias Array[float32]    // optional: (directions·channels)
	Softplus  bool              // Δ is softplus(Delta + DeltaBias)

	entries Array[float32] // optional: see entriesLen. Forward writes it, and Backward reads it
}

// GridProjection is B or C: the first state numbers of each of (rows, directions) parts of Step elements.
type GridProjection[T Activation] struct {
	Data Array[T]
	Step int
}

// GridGrad receives the gradients of a GridScan's operands, in their shapes. Those of absent operands are absent.
type GridGrad[T Activation] struct {
	U               Array[float32]
	More            func() (Array[T], error) // optional: called when the other gradients are queued; its result, in U's shape, is added to that of U
	Delta           Array[T]
	B, C            GridProjection[T]
	A, D, DeltaBias Array[float32]
}

// gridArgs has the same fields as the kernels' struct Grid (kernels/grid.cuh).
type gridArgs struct {
	batch, cells, channels, state, directions, groups, warps, chunks, chunkSteps                     int64
	uRow, uApart, bStep, cStep, yRow, yApart, dyRow, dyApart, duRow, duApart, ddeltaRow, ddeltaApart int64
	softplus, alog, vectors                                                                          int64
	order, u, delta, a, b, c, d, bias, y, checkpoints, states, carries, sums                         uintptr
	dy, du, ddelta, db, dc, da, dd, dbias                                                            uintptr
}

// orders is a copy on the device of the orders of a scan.
type orders struct {
	host   [][]int32
	on     Array[int32]
	pinned bool // a capture reads it
}

// ordersRoom is how many bytes of orders a stream keeps.
const ordersRoom = 256 << 20

// GridOrders returns the orders of a GridScan's directions on the device, (directions, cells): for each step the cell. All must be permutations of 0 to n-1 for the
// same n, and must not change later. Equal orders are uploaded once for a stream. Ask for them before each use, and do not free the array: beyond 256 MiB, the
// stream frees the orders for which nobody has asked for the longest time. Those that were asked for during a capture stay until the device is closed. A capture cannot
// upload orders, so they must be there before it.
func GridOrders(s *Stream, host [][]int32) (Array[int32], error) {
	if err := s.usable(); err != nil {
		return Array[int32]{}, err
	}
	for i, o := range s.orders {
		if slices.EqualFunc(o.host, host, func(a, b []int32) bool {
			return len(a) == len(b) && unsafe.SliceData(a) == unsafe.SliceData(b) || slices.Equal(a, b)
		}) {
			o.pinned = o.pinned || s.pool.capture != nil
			s.orders = append(slices.Delete(s.orders, i, i+1), o) // the last is the one used last
			return o.on, nil
		}
	}
	var all []int32
	for k, order := range host {
		if len(order) == 0 || len(order) != len(host[0]) {
			return Array[int32]{}, fmt.Errorf("cuda: grid scan: order %d has %d cells, want at least 1, and as many as order 0", k, len(order))
		}
		seen := make([]bool, len(order))
		for t, cell := range order {
			if cell < 0 || int(cell) >= len(order) || seen[cell] {
				return Array[int32]{}, fmt.Errorf("cuda: grid scan: order %d has cell %d at step %d, want each of 0 to %d once", k, cell, t, len(order)-1)
			}
			seen[cell] = true
		}
		all = append(all, order...)
	}
	on, err := Upload(s, all)
	if err == nil {
		s.keepOrders(orders{host: slices.Clone(host), on: on}, ordersRoom)
	}
	return on, err
}

// keepOrders keeps orders, and frees those of the longest time ago that do not fit into room bytes beside them.
func (s *Stream) keepOrders(o orders, room int) {
	room -= 4 * o.on.n
	kept := []orders{o}
	for _, o := range slices.Backward(s.orders) {
		if room -= 4 * o.on.n; room < 0 && !o.pinned {
			o.on.Free()
			continue
		}
		kept = append(kept, o)
	}
	slices.Reverse(kept)
	s.orders = kept
}

// gridSize is a size of kernels: states and channels of a thread.
type gridSize struct{ states, channels int }

// size returns the size of the kernels. addresses are those of the activations, in bytes.
func (g *GridScan[T]) size(backward bool, addresses ...uintptr) gridSize {
	switch {
	case g.State == 1:
		together := g.U.address | g.Delta.address
		for _, a := range addresses {
			together |= a
		}
		if g.Channels%64 == 0 && together%uintptr(2*size[T]()) == 0 {
			return gridSize{1, 2}
		}
		return gridSize{1, 1}
	case g.State <= 4:
		return gridSize{4, 1}
	case g.State <= 8 || backward:
		return gridSize{8, 1}
	}
	return gridSize{16, 1}
}

func (k gridSize) groups(state int) int { return (state + k.states - 1) / k.states }

// run queues a kernel. Of all but the merging kernels, a warp has a part of the channels, of a chunk, of a group of a direction.
func (k gridSize) run(s *Stream, kind, typeName string, a *gridArgs) error {
	g := blocksOf(int(32*a.warps*a.chunks*a.directions*a.groups*a.batch), 128)
	return s.run(fmt.Sprint("grid", k.states), fmt.Sprintf("grid_%s_%s_%dx%d", kind, typeName, k.states, k.channels), g, unsafe.Pointer(a))
}

func (g *GridScan[T]) rows() int { return count(g.Batch, g.Cells) }

// width returns the channels of a row that the directions share or do not share.
func (g *GridScan[T]) width(shared bool) int {
	if shared {
		return g.Channels
	}
	return count(g.Directions, g.Channels)
}

// tileSteps returns the steps between two checkpoints.
func (g *GridScan[T]) tileSteps() int {
	if g.State <= 4 {
		return 8
	}
	return 4
}

// CheckpointLen returns the length of the checkpoints.
func (g *GridScan[T]) CheckpointLen() int {
	return count(g.Batch, (g.Cells+g.tileSteps()-1)/g.tileSteps(), g.Directions, g.State, g.Channels)
}

func (g *GridScan[T]) uLen() int      { return count(g.rows(), g.width(g.OneU)) }
func (g *GridScan[T]) resultLen() int { return count(g.rows(), g.width(g.Merge)) }

func (g *GridScan[T]) check() error {
	if g == nil {
		return missing("grid scan")
	}
	if err := firstError(atLeast(0, "grid scan", "Batch", g.Batch, "Cells", g.Cells),
		atLeast(1, "grid scan", "Channels", g.Channels, "State", g.State, "Directions", g.Directions)); err != nil {
		return err
	}
	if g.State > MaxState {
		return fmt.Errorf("cuda: grid scan: State is %d, want at most %d", g.State, MaxState)
	}
	if width := count(g.Directions, max(g.Channels, g.B.Step, g.C.Step)); int64(width) >= 1<<31 {
		return fmt.Errorf("cuda: grid scan: a cell has %d numbers, want less than 2^31", width)
	}
	all, rows := count(g.Directions, g.Channels), g.rows()
	return firstError(
		expect("grid scan", "Order", g.Order.n, count(g.Directions, g.Cells), "U", g.U.n, g.uLen(),
			"Delta", g.Delta.n, count(rows, all), "A", g.A.n, count(all, g.State)),
		g.checkProjections("", g.B, g.C),
		optional("grid scan", "D", g.D, all, "DeltaBias", g.DeltaBias, all),
	)
}

// checkProjections checks B and C, or their gradients.
func (g *GridScan[T]) checkProjections(of string, b, c GridProjection[T]) error {
	parts := count(g.rows(), g.Directions)
	return firstError(
		inRow("grid scan", "the Step of "+of+"B", b.Step, g.State), inRow("grid scan", "the Step of "+of+"C", c.Step, g.State),
		expect("grid scan", of+"B", b.Data.n, strided(parts, b.Step, g.State), of+"C", c.Data.n, strided(parts, c.Step, g.State)),
	)
}

// args returns the arguments for kernels of a size.
func (g *GridScan[T]) args(s *Stream, k gridSize) gridArgs {
	a := gridArgs{
		batch: int64(g.Batch), cells: int64(g.Cells), channels: int64(g.Channels), state: int64(g.State), directions: int64(g.Directions),
		groups: int64(k.groups(g.State)), warps: int64((g.Channels + 32*k.channels - 1) / (32 * k.channels)), chunks: 1, chunkSteps: int64(g.Cells),
		uRow: int64(g.width(g.OneU)), bStep: int64(g.B.Step), cStep: int64(g.C.Step),
		order: g.Order.address, u: g.U.address, delta: g.Delta.address, a: g.A.address, b: g.B.Data.address, c: g.C.Data.address,
		d: g.D.address, bias: g.DeltaBias.address,
	}
	if !g.OneU {
		a.uApart = a.channels
	}
	if g.Softplus {
		a.softplus = 1
	}
	if g.ALog {
		a.alog = 1
	}
	together := uintptr(int64(g.B.Step|g.C.Step)*size[T]()) | g.B.Data.address | g.C.Data.address
	if g.State%k.states == 0 && together%uintptr(min(16, int64(k.states)*size[T]())) == 0 {
		a.vectors = 1
	}
	chunks, steps := g.chunks(s, int(a.warps))
	a.chunks, a.chunkSteps = int64(chunks), int64(steps)
	return a
}

// chunks returns into how many chunks the orders are cut, and the steps of a chunk: enough chunks for warps of the channels to fill the device. It is the
// same forward and backward, so that Backward can read the states that entered the chunks of Forward.
func (g *GridScan[T]) chunks(s *Stream, warps int) (chunks, steps int) {
	const least, tile = 64, 8 // steps of a chunk, which is a multiple of a tile
	if warps *= g.Batch * g.Directions * g.size(false).groups(g.State); warps >= 6*s.multiprocessors() {
		return 1, g.Cells
	}
	chunks = max(1, min(12*s.multiprocessors()/warps, g.Cells/least))
	steps = ((g.Cells+chunks-1)/chunks + tile - 1) / tile * tile
	return (g.Cells + steps - 1) / steps, steps
}

// entriesLen returns the length of the states that enter the chunks, (batch, chunks, directions, state, channels), of a scan with more than one state, or 0
// if there is one chunk.
func (g *GridScan[T]) entriesLen(s *Stream) int {
	chunks, _ := g.chunks(s, (g.Channels+31)/32)
	if chunks == 1 {
		return 0
	}
	return count(g.Batch, chunks, g.Directions, g.State, g.Channels)
}

// enter computes the states that enter the chunks, if there are several, unless they are already in g.entries. It allocates what passes between the chunks.
func (g *GridScan[T]) enter(s *Stream, work *temporaries, k gridSize, a *gridArgs, known bool) (err error) {
	if a.chunks == 1 {
		return nil
	}
	all := int(a.batch * a.chunks * a.directions * a.channels)
	a.sums, a.states = take[float32](s, work, all, &err).address, g.entries.address
	if g.entries.Absent() {
		a.states = take[float32](s, work, all*g.State, &err).address
	}
	if err != nil || known && !g.entries.Absent() {
		return err
	}
	return firstError(k.run(s, "ends", typeName[T](), a), g.carry(s, a, 0))
}

// carry turns what leaves each chunk into what enters it.
func (g *GridScan[T]) carry(s *Stream, a *gridArgs, reverse int) error {
	return s.run("grid1", "grid_carry", blocksOf(int(a.batch*a.directions*a.state*a.channels), 128), unsafe.Pointer(a), reverse)
}

// Forward queues y: (rows, directions·channels), or with Merge (rows, channels), the sum of the directions. It also writes the checkpoints
// unless they are absent. y can be absent if they are not.
func (g *GridScan[T]) Forward(s *Stream, y, checkpoints Array[float32]) (err error) {
	if err := g.check(); err != nil {
		return err
	}
	if err := firstError(optional("grid scan", "y", y, g.resultLen(), "checkpoints", checkpoints, g.CheckpointLen()), s.usable()); err != nil {
		return err
	}
	if g.rows() == 0 {
		return nil
	}
	k := g.size(false, y.address)
	a := g.args(s, k)
	a.checkpoints = checkpoints.address
	var work temporaries
	defer func() { work.free() }()
	var m gridMerge[T, float32]
	if !y.Absent() {
		m = partsOf(g, s, &work, y, false, a.groups, g.Merge, &err)
		a.y, a.yRow, a.yApart = m.address, m.row, m.apart
	}
	if err := firstError(err, g.enter(s, &work, k, &a, false)); err != nil {
		return err
	}
	return firstError(k.run(s, "forward", typeName[T](), &a), m.run(s))
}

// gridMerge is the sum of the parts of a result, of each direction or of all.
type gridMerge[T, Y Activation] struct {
	parts, more           Array[T]
	to                    Array[Y]
	address               uintptr // where the scan writes
	row, apart            int64   // elements between cells, and between groups of directions
	count, rows, channels int
	directions            int64 // of the result
}

// partsOf returns where a scan writes a result of which each direction has groups parts, and how they become the result: the sum over all
// directions if merged, else over the groups of each. more says that something is added to the sum.
func partsOf[T, Y Activation](g *GridScan[T], s *Stream, work *temporaries, to Array[Y], more bool, groups int64, merged bool, err *error) gridMerge[T, Y] {
	m := gridMerge[T, Y]{
		to: to, count: int(groups), rows: g.rows(), channels: g.Channels, directions: int64(g.Directions), row: int64(g.Channels),
		apart: int64(g.rows() * g.Channels),
	}
	if merged {
		m.count, m.directions = m.count*g.Directions, 1
	}
	if direct, same := any(to).(Array[T]); same && m.count == 1 && !more {
		m.address, m.row, m.apart = direct.address, m.directions*m.row, m.row
		m.count = 0
		return m
	}
	m.parts = take[T](s, work, m.count*int(m.directions)*m.rows*m.channels, err)
	m.address = m.parts.address
	return m
}

// run queues the sum, unless the scan wrote the result itself.
func (m *gridMerge[T, Y]) run(s *Stream) error {
	if m.count == 0 {
		return nil
	}
	g := blocksOf((m.rows*m.channels+3)/4, 256)
	g.y = m.directions
	return s.run("grid1", "grid_merge_"+typeName[T]()+"_"+typeName[Y](), g, m.parts.address, m.more.address, m.to.address, m.count, m.rows, m.channels)
}

// again queues what Backward needs of each chunk: the checkpoints, unless they are known, and the gradients that enter it. One pass computes both, since
// the decays are the expensive part of either.
func (g *GridScan[T]) again(s *Stream, work *temporaries, k gridSize, a *gridArgs, checkpoints bool) (err error) {
	if !checkpoints && a.chunks == 1 {
		return nil
	}
	if a.chunks == 1 {
		return k.run(s, "forward", typeName[T](), a)
	}
	pass := "carries"
	if checkpoints {
		pass = "again"
		err = g.enter(s, work, k, a, true)
	}
	all := int(a.batch * a.chunks * a.directions * a.channels)
	a.carries = take[float32](s, work, all*g.State, &err).address
	if !checkpoints {
		a.sums = take[float32](s, work, all, &err).address
	}
	if err != nil {
		return err
	}
	return firstError(k.run(s, pass, typeName[T](), a), g.carry(s, a, 1))
}

// Backward queues the gradients of all operands, from the gradient dy of the result. checkpoints are those that Forward wrote. If they are
// absent, Backward computes them. It writes every element of grad's arrays except what lies between the parts of B and C. Sums are added in
// a fixed order, so two runs give the same bits.
func (g *GridScan[T]) Backward(s *Stream, checkpoints Array[float32], dy Array[T], grad *GridGrad[T]) (err error) {
	if err := g.check(); err != nil {
		return err
	}
	if grad == nil {
		return fmt.Errorf("cuda: grid scan: the gradients are missing, want arrays for them")
	}
	all := g.Directions * g.Channels
	if err := firstError(
		expect("grid scan", "dy", dy.n, g.resultLen(), "the gradient of U", grad.U.n, g.uLen(),
			"the gradient of Delta", grad.Delta.n, g.rows()*all, "the gradient of A", grad.A.n, all*g.State),
		g.checkProjections("the gradient of ", grad.B, grad.C),
		optional("grid scan", "checkpoints", checkpoints, g.CheckpointLen(), "the gradient of D", grad.D, all,
			"the gradient of DeltaBias", grad.DeltaBias, all), s.usable(),
	); err != nil {
		return err
	}
	if g.rows() == 0 {
		return firstError(grad.A.Fill(s, 0), orNothing(grad.D, s), orNothing(grad.DeltaBias, s))
	}
	var work temporaries
	defer func() { work.free() }()
	k := g.size(true, dy.address, grad.U.address, grad.Delta.address)
	before := k // the size of the kernels that run before
	if g.State > k.states {
		before = g.size(false)
	}
	a := g.args(s, before)
	a.dy, a.dyRow, a.checkpoints = dy.address, int64(g.width(g.Merge)), checkpoints.address
	if !g.Merge {
		a.dyApart = a.channels
	}
	if checkpoints.Absent() {
		a.checkpoints = take[float32](s, &work, g.CheckpointLen(), &err).address
	}
	if err := firstError(err, g.again(s, &work, before, &a, checkpoints.Absent())); err != nil {
		return err
	}
	own := g.args(s, k)
	a.groups, a.vectors = own.groups, own.vectors
	du := partsOf(g, s, &work, grad.U, grad.More != nil, a.groups, g.OneU, &err)
	ddelta := partsOf(g, s, &work, grad.Delta, false, a.groups, false, &err)
	a.du, a.duRow, a.duApart = du.address, du.row, du.apart
	a.ddelta, a.ddeltaRow, a.ddeltaApart = ddelta.address, ddelta.row, ddelta.apart
	projections, sequences := g.rows()*g.Directions*g.State, g.Batch*int(a.chunks)
	db, dc := take[float32](s, &work, int(a.warps)*projections, &err), take[float32](s, &work, int(a.warps)*projections, &err)
	da := take[float32](s, &work, sequences*all*g.State, &err)
	var dd, dbias Array[float32]
	if !grad.D.Absent() {
		dd = take[float32](s, &work, sequences*all, &err)
	}
	if !grad.DeltaBias.Absent() {
		dbias = take[float32](s, &work, int(a.groups)*sequences*all, &err)
	}
	a.db, a.dc, a.da, a.dd, a.dbias = db.address, dc.address, da.address, dd.address, dbias.address
	if err != nil {
		return err
	}
	half := 2 - size[T]()/2 // 1 for bfloat16, else 0
	sum := func(to GridProjection[T], parts Array[float32]) partSum {
		return partSum{to.Data.address, parts.address, a.warps, int64(projections), int64(projections), a.state, 1, int64(to.Step), half}
	}
	sums := []partSum{sum(grad.B, db), sum(grad.C, dc), sumOf(grad.A.Slice(0, all*g.State), da, sequences)}
	if !dd.Absent() {
		sums = append(sums, sumOf(grad.D.Slice(0, all), dd, sequences))
	}
	if !dbias.Absent() {
		sums = append(sums, sumOf(grad.DeltaBias.Slice(0, all), dbias, int(a.groups)*sequences))
	}
	if err := firstError(k.run(s, "backward", typeName[T](), &a), ddelta.run(s), s.sumParts(sums)); err != nil {
		return err
	}
	if grad.More != nil {
		if du.more, err = grad.More(); err != nil {
			return err
		}
		if err := expect("grid scan", "More", du.more.n, g.uLen()); err != nil {
			return err
		}
	}
	return du.run(s)
}

// orNothing fills an array with zeros, unless it is absent.
func orNothing(a Array[float32], s *Stream) error {
	if a.Absent() {
		return nil
	}
	return a.Fill(s, 0)
}
