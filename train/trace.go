package train

import (
	"bytes"
	"encoding/gob"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/gomamba/mamba/dist"
)

// Trace records what the time of Trainer.Run goes to, on each rank of a group. The zero value is ready to use in Config.Trace. It costs some microseconds a
// step. A nil *Trace has recorded nothing.
//
// On a GPU the host only queues most of the work, and waits where it reads a result. So the times show where the host waits.
type Trace struct {
	mu      sync.Mutex
	origin  time.Time // the same moment on all ranks, within the time of a barrier; the zero time before Run
	phase   phase
	since   time.Duration // when phase began
	own     rankTrace
	ranks   []rankTrace // of all ranks, on rank 0 after Run
	running bool
}

// phase is what a trainer does. At any time it does one thing.
type phase int

const (
	idle       phase = iota // outside of Run
	loading                 // reads and checks batches
	computing               // forward and backward passes
	exchanging              // waits for the gradients of other ranks, and adds them up
	updating                // makes the step of the solver
	waiting                 // waits for other ranks in a call that moves a few bytes
	evaluating
	saving
	reporting // in Report
	phases
)

var phaseNames = [phases]string{"", "data", "compute", "gradients", "update", "ranks", "evaluate", "save", "report"}

// rankTrace is what one rank records.
type rankTrace struct {
	Steps            int
	Sums             [phases]time.Duration
	Exchange, Hidden time.Duration // in which bytes of collective calls moved, and what of it was during compute
	Spans            []traceSpan   // the first longestTrace ones
}

// traceSpan is a time on a track of the trace file.
type traceSpan struct {
	Name       string
	Call       bool // a call of the group, not a phase
	Begin, End time.Duration
}

// longestTrace is the number of spans that a rank keeps: those of some thousand steps.
const longestTrace = 1 << 16

// start begins to record a Run. Its ranks come together first, so that their times have the same origin.
func (t *Trace) start(g *dist.Group) error {
	if t == nil {
		return nil
	}
	if err := g.Barrier(); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.origin.IsZero() {
		t.origin = time.Now()
	}
	t.phase, t.since, t.running = idle, time.Since(t.origin), true
	g.Observe(t.observe)
	return nil
}

// begin ends a phase and begins the next one.
func (t *Trace) begin(p phase) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.running {
		return
	}
	now := time.Since(t.origin)
	t.own.Sums[t.phase] += now - t.since
	if t.phase != idle {
		t.add(traceSpan{phaseNames[t.phase], false, t.since, now})
	}
	if p == loading {
		t.own.Steps++
	}
	t.phase, t.since = p, now
}

func (t *Trace) add(s traceSpan) {
	if len(t.own.Spans) < longestTrace {
		t.own.Spans = append(t.own.Spans, s)
	}
}

// computed returns the time in the phase computing until now.
func (t *Trace) computed(now time.Duration) time.Duration {
	if t.phase == computing {
		return t.own.Sums[computing] + now - t.since
	}
	return t.own.Sums[computing]
}

// observe is the observer of the group: it records the calls, which may be made beside the computation.
func (t *Trace) observe(call string) func(done bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name, began := "wait: "+call, time.Since(t.origin)
	before := t.computed(began)
	return func(done bool) {
		t.mu.Lock()
		defer t.mu.Unlock()
		now := time.Since(t.origin)
		computed := t.computed(now)
		switch meanwhile := computed - before; {
		case call == "Receive": // an operator waits for the state of the rank before
			t.own.Sums[computing] -= meanwhile
			t.own.Sums[waiting] += meanwhile
			computed -= meanwhile
		case name == call:
			t.own.Exchange += now - began
			t.own.Hidden += meanwhile
		}
		t.add(traceSpan{name, true, began, now})
		name, began, before = call, now, computed
	}
}

// stop ends the recording of a Run. If the ranks can still talk, rank 0 gets what all have recorded.
func (t *Trace) stop(g *dist.Group, talk bool) error {
	if t == nil {
		return nil
	}
	t.begin(idle)
	g.Observe(nil)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running, t.ranks = false, []rankTrace{t.own}
	if !talk || g.Size() == 1 {
		return nil
	}
	var text bytes.Buffer
	if err := gob.NewEncoder(&text).Encode(t.own); err != nil {
		return err
	}
	all, err := g.GatherBytes(text.Bytes())
	if err != nil || g.Rank() > 0 {
		return err
	}
	t.ranks = make([]rankTrace, len(all))
	for rank, b := range all {
		if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&t.ranks[rank]); err != nil {
			return fmt.Errorf("train: the trace of rank %d: %w", rank, err)
		}
	}
	return nil
}

// String returns a table after Run, at most 80 columns wide, with a row for each rank on rank 0 and for this one on others: milliseconds for each step, and what share of them goes to
//
//   - data: reading batches;
//   - compute: forward and backward passes;
//   - grads: waiting for the sums of gradients after the backward pass, and with Shard for the new weights;
//   - update: the step of the solver;
//   - ranks: waiting for other ranks elsewhere;
//   - eval, save, and report: evaluation, the file, and Config.Report.
//
// A group has two more columns: milliseconds for each step in which the bytes of collective calls move, and what share of them was during compute, where it costs little.
func (t *Trace) String() string {
	if t == nil {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.ranks) == 0 {
		return ""
	}
	units, names := fmt.Sprintf("%-13s --------------------- %% of it ---------------------", fmt.Sprint(t.ranks[0].Steps, " steps")), "rank  ms/step  data compute grads update ranks  eval  save report"
	if len(t.ranks) > 1 {
		units, names = units+"      ms      %", names+"  moving hidden"
	}
	var b strings.Builder
	fmt.Fprint(&b, units, "\n", names)
	for rank, r := range t.ranks {
		var all time.Duration
		for _, d := range r.Sums[1:] {
			all += d
		}
		each := func(d time.Duration) float64 { return d.Seconds() * 1000 / float64(max(r.Steps, 1)) }
		fmt.Fprintf(&b, "\n%4d %8.1f", rank, each(all))
		for i, width := range []int{5, 7, 5, 6, 5, 5, 5, 6} { // of the names
			fmt.Fprintf(&b, " %*.1f", width, percent(r.Sums[1+i], all))
		}
		if len(t.ranks) > 1 {
			fmt.Fprintf(&b, " %7.1f %6.1f", each(r.Exchange), percent(r.Hidden, r.Exchange))
		}
	}
	return b.String() + "\n"
}

func percent(part, of time.Duration) float64 { return 100 * part.Seconds() / max(of.Seconds(), 1e-9) }

// WriteJSON writes what String sums up over time, in the trace event format of Chrome, which ui.perfetto.dev and chrome://tracing show: a process for each rank, with a
// track of what the trainer does and one of the calls of the group. It has the first 65,536 times of a rank, which are some thousand steps. Before Run it has none.
//
// Errors: those of w; a nil w.
func (t *Trace) WriteJSON(w io.Writer) error {
	if w == nil {
		return fmt.Errorf("train: trace: w is nil, want a writer")
	}
	if _, err := io.WriteString(w, `{"displayTimeUnit":"ms","traceEvents":[`); err != nil {
		return err
	}
	if t != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		for rank, r := range t.ranks {
			if rank > 0 {
				fmt.Fprint(w, ",")
			}
			fmt.Fprintf(w, `{"name":"process_name","ph":"M","pid":%d,"args":{"name":"rank %[1]d"}}`, rank)
			for track, name := range []string{"trainer", "calls of the group"} {
				fmt.Fprintf(w, `,{"name":"thread_name","ph":"M","pid":%d,"tid":%d,"args":{"name":%q}}`, rank, track, name)
			}
			for _, s := range r.Spans {
				track := 0
				if s.Call {
					track = 1
				}
				micros := func(d time.Duration) float64 { return float64(d) / 1e3 }
				if _, err := fmt.Fprintf(w, "\n"+`,{"name":%q,"ph":"X","pid":%d,"tid":%d,"ts":%.3f,"dur":%.3f}`, s.Name, rank, track, micros(s.Begin), micros(s.End-s.Begin)); err != nil {
					return err
				}
			}
		}
	}
	_, err := io.WriteString(w, "]}\n")
	return err
}
