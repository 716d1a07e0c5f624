package cuda

import (
	"errors"
	"fmt"
	"slices"
	"unsafe"
)

// What a program asks for after an upload is often the same each time: a training step that has new ids computes its loss, copies it to the host, and
// computes its gradients. When the same work has followed an upload a few times, the stream queues all of it as soon as the upload is queued: it runs ahead
// of the program. Then it compares what the program asks for with what is queued. So the device does not wait for the program, nor for the host to have read
// the loss.
//
// If the program asks for something else, the work that it did not ask for must have had no effect. So a stream runs ahead only with work that writes
// memory which belongs to no array when it is queued. All else that the work uses is lasting arrays (Stream.Lasting), which repeated work (Stream.Repeat)
// only reads. There is one exception: it makes the copy of a weight in bfloat16 anew, from the weight alone, so that the copy has the same numbers whether that comes early, twice or
// in vain. What the program did ask for is then queued again, since later work may have overwritten its results: it finds the same operands, and
// writes the same results.

const (
	sureAfter    = 3       // times that the same work must have followed an upload
	mostPatience = 1 << 10 // and the most times, after it was not the same
	mostPlans    = 64      // plans of a stream
	mostCopies   = 4       // copies to the host in a plan
	copyBytes    = 1024    // the most bytes of each
	mostPieces   = 8       // the most pieces of each
)

// toHost is a copy to the host as a task of a plan: the address and the bytes of each piece.
var toHost = &function{name: "a copy to the host"}

// plan is the work that follows an upload.
type plan struct {
	tasks []task
	times int // how often they came one after another. The stream runs ahead when they came sure times
	sure  int
	good  int // how often the stream ran ahead since sure became what it is

	uses  []extent  // the memory of the first tasks
	ready int       // how many of the tasks these are
	parts []stretch // of these; nil before they are prepared
	made  int       // how often the parts were recorded
}

// stretch is a graph of tasks. If sends is true its last ones write what is copied to the host there: between two graphs a copy by the driver takes the device 15 µs.
type stretch struct {
	graph uintptr
	sends bool
}

// extent is memory of an array.
type extent struct {
	address uintptr
	size    int64
	lasting bool
}

// ahead is what a stream knows of the work that follows uploads.
type ahead struct {
	plans   map[uintptr]*plan // by the address of the upload
	upload  uintptr           // the last one to a lasting array; 0 if not only tasks and copies to the host came since
	plan    *plan             // of the work since; nil before it comes
	at      int               // how many of its tasks came
	changed bool              // they are not those of the last time
	running bool              // they are queued already
	copies  int               // those to the host among the tasks that came

	inUse  []extent // the memory that arrays had at the upload; nil if the tasks' memory is not recorded
	host   unsafe.Pointer
	copied [mostCopies]*Event
}

// uploaded begins the work that follows an upload.
func (s *Stream) uploaded(to uintptr) error {
	a := &s.ahead
	if b := s.pool.blocks[to]; s.device.single || s.pool.capture != nil || b == nil || !b.lasting {
		return nil
	}
	a.upload, a.plan, a.at, a.copies, a.changed, a.inUse = to, a.plans[to], 0, 0, false, nil
	p := a.plan
	switch {
	case p == nil:
		return nil
	case p.parts == nil:
		if p.times == p.sure-1 {
			p.uses, p.ready, a.inUse = nil, 0, s.pool.extents()
		}
		return nil
	case p.times < p.sure:
		return nil
	case slices.ContainsFunc(p.uses, func(e extent) bool { return !s.pool.idle(e) }):
		s.behind("an array has memory that the work after an upload wrote the last time")
		return nil
	}
	if err := s.runAhead(p); err != nil {
		s.behind("a graph could not be launched: %v", err)
		return s.drop(p)
	}
	a.running = true
	return nil
}

// runAhead queues the work of a plan.
func (s *Stream) runAhead(p *plan) error {
	d, copies := s.device, 0
	for _, part := range p.parts {
		if err := d.do(cuGraphLaunch, part.graph, s.handle); err != nil {
			return err
		}
		if !part.sends {
			continue
		}
		if err := d.do(cuEventRecord, s.ahead.copied[copies].handle, s.handle); err != nil {
			return err
		}
		copies++
	}
	return nil
}

// came is called with each task. queued says that it was queued ahead. Otherwise the caller queues it.
func (s *Stream) came(f *function, words []uint64) (queued bool, err error) {
	a := &s.ahead
	switch {
	case a.upload == 0:
		return false, nil
	case !a.running:
		return false, s.note(f, words)
	case !a.plan.tasks[a.at].is(f, words):
		return false, s.takeBack(f.name)
	}
	if f == toHost {
		a.copies++
		s.cameTo(a.at+1, 0)
	} else {
		s.cameTo(a.at+1, 1)
	}
	return true, nil
}

// Passage is a part of the work that a stream has queued before the program asked for it.
type Passage struct {
	plan             *plan
	made             int // see plan
	from, to, copies int
}

// Here returns an empty passage at what the program asks for next. It is the zero Passage if that is not queued yet.
func (s *Stream) Here() Passage {
	if s == nil || !s.ahead.running {
		return Passage{}
	}
	a := &s.ahead
	return Passage{a.plan, a.plan.made, a.at, a.at, a.copies}
}

// Since returns the passage from a place to what the program asks for next. It is the zero Passage if not all of it was queued before the program asked for it, or if a part of it is
// a copy to the host.
func (s *Stream) Since(from Passage) Passage {
	if here := s.Here(); from.plan != nil && here.plan == from.plan && here.made == from.made && here.from > from.from && here.copies == from.copies {
		from.to = here.from
		return from
	}
	return Passage{}
}

// Follows reports whether the work of a passage is what follows in the work that is queued.
func (s *Stream) Follows(p Passage) bool {
	here := s.Here()
	return p.plan != nil && here.plan == p.plan && here.made == p.made && here.from == p.from
}

// Skip stands for asking for the work of a passage that follows. It does nothing if another one does.
func (s *Stream) Skip(p Passage) {
	if !s.Follows(p) {
		return
	}
	last := p.plan.tasks[p.to-1]
	s.last(last.function, last.words)
	s.cameTo(p.to, p.to-p.from)
}

// cameTo notes that the program has asked for the first tasks of the plan, more pieces than before.
func (s *Stream) cameTo(at, more int) {
	a := &s.ahead
	s.device.launches.replayed.Add(int64(more))
	s.device.launches.ahead.Add(int64(more))
	if a.at = at; at < a.plan.ready {
		return
	}
	p := a.plan
	a.running, a.plan, a.upload = false, nil, 0
	if p.good++; p.good >= p.sure { // it was right often
		p.good, p.sure = 0, max(p.sure/2, sureAfter)
	}
}

// note records a task that follows an upload.
func (s *Stream) note(f *function, words []uint64) (err error) {
	a := &s.ahead
	if a.plan == nil {
		if a.plan, err = s.planAfter(a.upload); err != nil {
			return err
		}
	}
	p := a.plan
	if a.at == len(p.tasks) || !p.tasks[a.at].is(f, words) {
		if a.at == mostSeen {
			return s.endPlan()
		}
		if err := s.drop(p); err != nil {
			return err
		}
		p.tasks = append(p.tasks[:a.at:a.at], task{f, slices.Clone(words)})
		a.changed = true
	}
	if a.at++; f == toHost {
		a.copies++
	}
	if a.inUse != nil && !a.changed {
		s.use(p, f, words)
	}
	return nil
}

// planAfter returns a plan for the work after an upload.
func (s *Stream) planAfter(upload uintptr) (*plan, error) {
	p := &plan{sure: sureAfter}
	return p, s.device.whileOpen(func() error { // Close reads the plans
		a := &s.ahead
		var errs []error
		if len(a.plans) == mostPlans {
			for _, old := range a.plans {
				errs = append(errs, old.release(s.device))
			}
			a.plans = nil // also after an error: Close must not free a graph again
		}
		if a.plans == nil {
			a.plans = map[uintptr]*plan{}
		}
		a.plans[upload] = p
		return errors.Join(errs...)
	})
}

// use records the memory that a task uses. If the task must not run ahead, no later one is recorded.
func (s *Stream) use(p *plan, f *function, words []uint64) {
	a, pool := &s.ahead, &s.pool
	if a.copies > mostCopies {
		a.inUse = nil
		return
	}
	for _, address := range addresses(f, words) {
		e, ok := pool.extentOf(address)
		if !ok || !e.lasting && slices.ContainsFunc(a.inUse, e.overlaps) || e.lasting && pool.repeat == nil {
			s.behind("%s uses memory that is not its own", f.name)
			a.inUse = nil
			return
		}
		if !slices.Contains(p.uses, e) {
			p.uses = append(p.uses, e)
		}
	}
	p.ready = a.at
}

// addresses returns the words of a task that can be addresses in memory.
func addresses(f *function, words []uint64) (all []uintptr) {
	switch f {
	case fill:
		words = words[:1]
	case copying:
		words = words[:2]
	case product:
		words = []uint64{words[7], words[10], words[14]}
	case products:
		words = []uint64{words[7], words[11], words[16]}
	case toHost:
	default:
		if f.sizes != nil {
			words = words[gridWords:]
		}
		if f.firsts > 0 {
			words = words[:f.firsts]
		}
	}
	for _, w := range words {
		if w >= 1<<32 && w < 1<<57 { // others are numbers: two of float32 in a word are above, unless one is below 2^-98
			all = append(all, uintptr(w))
		}
	}
	return all
}

func (e extent) overlaps(f extent) bool {
	return e.address < f.address+uintptr(f.size) && f.address < e.address+uintptr(e.size)
}

// endPlan ends the work that follows an upload, when something else comes.
func (s *Stream) endPlan() error {
	a, p := &s.ahead, s.ahead.plan
	a.upload, a.plan = 0, nil
	if p == nil {
		return nil
	}
	if a.changed || a.at < len(p.tasks) {
		p.tasks, p.times = p.tasks[:a.at:a.at], 0
		return s.drop(p)
	}
	if p.times++; p.times < p.sure || p.parts != nil {
		return nil
	}
	if a.inUse = nil; p.ready < leastTasks {
		p.hesitate()
		return nil
	}
	if err := s.prepare(p); err != nil {
		s.behind("it could not be recorded: %v", err)
		p.hesitate()
		return s.drop(p)
	}
	return nil
}

// hesitate makes the stream run ahead only when the same work has come twice as often as it would have sufficed before.
func (p *plan) hesitate() { p.times, p.good, p.sure = 0, 0, min(2*p.sure, mostPatience) }

// prepare records the graphs of a plan.
func (s *Stream) prepare(p *plan) error {
	p.made++
	copies := 0
	for rest := p.tasks[:p.ready]; len(rest) > 0; {
		n := slices.IndexFunc(rest, func(t task) bool { return t.function == toHost })
		sends := n >= 0
		if !sends {
			n = len(rest)
		}
		tasks := rest[:n:n]
		if rest = rest[n:]; sends {
			all, err := s.sends(rest[0].words, copies)
			if err != nil {
				return err
			}
			tasks, rest = append(tasks, all...), rest[1:]
			copies++
		}
		var graph uintptr
		if err := s.graphOf(tasks, &graph, func() { p.parts = append(p.parts, stretch{graph, sends}) }); err != nil {
			return err
		}
	}
	return nil
}

// sends returns tasks that write the pieces of copy i to the memory of the host.
func (s *Stream) sends(words []uint64, i int) (tasks []task, err error) {
	f, err := s.device.function("elementwise", "send_bytes")
	if err != nil {
		return nil, err
	}
	if err := s.prepareCopy(i); err != nil {
		return nil, err
	}
	to := uint64(uintptr(s.ahead.host)) + uint64(i*copyBytes)
	for ; len(words) > 0; words = words[2:] {
		g := blocksOf(int(words[1]), 256)
		tasks = append(tasks, task{f, []uint64{uint64(g.x), 1, 1, uint64(g.threads), 0, 0, words[0], to, words[1]}})
		to += words[1]
	}
	return tasks, nil
}

// prepareCopy makes what copy i to the host needs.
func (s *Stream) prepareCopy(i int) error {
	a, d := &s.ahead, s.device
	return d.whileOpen(func() error {
		if a.host == nil {
			if err := d.call(cuMemAllocHost, uintptr(unsafe.Pointer(&a.host)), mostCopies*copyBytes); err != nil {
				return err
			}
		}
		if a.copied[i] == nil {
			const withoutTime = 2
			e := &Event{device: d} // release destroys it
			if err := d.call(cuEventCreate, uintptr(unsafe.Pointer(&e.handle)), withoutTime); err != nil {
				return err
			}
			a.copied[i] = e
		}
		return nil
	})
}

// copiedAhead is called with each copy to the host. done says that it was queued ahead, and that the numbers are there.
func (s *Stream) copiedAhead(pieces []piece) (done bool, err error) {
	words, bytes := s.words[:0], 0
	for _, p := range pieces {
		words, bytes = append(words, uint64(p.device), uint64(len(p.host))), bytes+len(p.host)
	}
	s.words = words
	if bytes > copyBytes || len(words) > 2*mostPieces || slices.ContainsFunc(pieces, func(p piece) bool { return len(p.host) == 0 }) {
		return false, s.stop(toHost.name)
	}
	a, i := &s.ahead, s.ahead.copies
	if done, err = s.came(toHost, words); !done || err != nil {
		return false, err
	}
	if err := a.copied[i].Synchronize(); err != nil {
		return false, err
	}
	return true, s.device.whileOpen(func() error { // Close of the device frees the memory
		from := unsafe.Slice((*byte)(a.host), mostCopies*copyBytes)[i*copyBytes:]
		for _, p := range pieces {
			from = from[copy(p.host, from):]
		}
		return nil
	})
}

// takeBack ends a run ahead whose next task did not come. It queues the tasks that came again, one by one. next is what came instead.
func (s *Stream) takeBack(next string) error {
	a, p := &s.ahead, s.ahead.plan
	tasks := p.tasks[:a.at]
	s.behind("%s came where %s was expected, or with other arguments", next, p.tasks[a.at].function.name)
	a.running, a.plan, a.upload = false, nil, 0
	if p.hesitate(); len(tasks) == 0 { // the work is the same when it comes
		return nil
	}
	if err := s.drop(p); err != nil {
		return err
	}
	s.device.launches.replayed.Add(int64(a.copies - len(tasks)))
	s.device.launches.ahead.Add(int64(a.copies - len(tasks)))
	for _, t := range tasks {
		if t.function == toHost { // the program has the numbers
			s.replay.segment = s.replay.segment[:0]
			continue
		}
		if err := s.issueAll([]task{t}); err != nil {
			return err
		}
	}
	return nil
}

// drop frees the graphs of a plan.
func (s *Stream) drop(p *plan) error {
	if p.parts == nil {
		return nil
	}
	return s.device.whileOpen(func() error {
		err := p.release(s.device)
		p.parts, p.times = nil, 0
		return err
	})
}

func (p *plan) release(d *Device) error {
	var errs []error
	for _, part := range p.parts {
		errs = append(errs, d.call(cuGraphExecDestroy, part.graph))
	}
	return errors.Join(errs...)
}

// release frees the graphs and the memory on the host. It changes nothing else, as that of replay.
func (a *ahead) release(d *Device) error {
	var errs []error
	for _, p := range a.plans {
		errs = append(errs, p.release(d))
	}
	for _, e := range a.copied {
		if e != nil {
			errs = append(errs, e.release())
		}
	}
	if a.host != nil {
		errs = append(errs, d.call(cuMemFreeHost, uintptr(a.host)))
	}
	return errors.Join(errs...)
}

// behind sets the reason that Launches returns.
func (s *Stream) behind(format string, args ...any) {
	why := fmt.Sprintf(format, args...)
	s.device.launches.behind.Store(&why)
}

// Settle makes the stream forget the work that it has queued before the program has asked for it. Call it before work that uses the arrays of the stream in
// another way than by the stream.
func (s *Stream) Settle() error { return firstError(s.open(), s.stop("other work")) }

// stop ends a run ahead and the work that follows an upload. It must run before what is neither a task nor a copy to the host. next is its name.
func (s *Stream) stop(next string) error {
	if s == nil || s.device == nil || s.pool.capture != nil {
		return nil
	}
	if s.ahead.running {
		if err := s.takeBack(next); err != nil {
			return err
		}
	}
	if err := s.cut(next); err != nil {
		return err
	}
	return s.endPlan()
}
