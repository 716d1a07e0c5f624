package train

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gomamba/mamba/dist"
	"github.com/gomamba/mamba/layer"
)

// A trace has all of the time of Run, of each rank, and changes nothing.
func TestTrace(t *testing.T) {
	smallBuckets(t)
	const ranks = 2
	traces := make([]Trace, ranks)
	with := func(traced bool) []outcome {
		all, err := trainOn(ranks, func(g *dist.Group) (*Trainer, layer.Params, error) {
			cfg := groupConfig(g, 2)
			if cfg.Shard = true; traced {
				cfg.Trace = &traces[g.Rank()]
			}
			return subjects()["any loss"](cfg)
		})
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	if !reflect.DeepEqual(with(true), with(false)) {
		t.Error("a run that is traced has other bits")
	}
	lines := strings.Split(strings.TrimSpace(traces[0].String()), "\n")
	if len(lines) != 2+ranks || !strings.HasPrefix(lines[0], "4 steps") || !strings.HasPrefix(lines[1], "rank  ms/step  data compute grads") || !strings.HasPrefix(lines[3], "   1 ") {
		t.Errorf("the table is\n%s", &traces[0])
	}
	var file struct {
		TraceEvents []struct {
			Name, Ph string
			Pid, Tid int
			Ts, Dur  float64
		}
	}
	var text bytes.Buffer
	if err := errors.Join(traces[0].WriteJSON(&text), json.Unmarshal(text.Bytes(), &file)); err != nil {
		t.Fatal(err)
	}
	found := [ranks]map[string]int{{}, {}}
	ends := [ranks]float64{}
	for _, e := range file.TraceEvents {
		found[e.Pid][e.Name]++
		if e.Ph == "X" && e.Tid == 0 {
			if d := e.Ts - ends[e.Pid]; ends[e.Pid] > 0 && (d < -0.01 || d > 0.01) {
				t.Errorf("%s of rank %d begins %v µs after the end of what was before", e.Name, e.Pid, d)
			}
			ends[e.Pid] = e.Ts + e.Dur
		}
	}
	for rank, names := range found {
		if names["data"] != 4 || names["compute"] != 4 || names["gradients"] != 8 || names["update"] != 4 || names["evaluate"] != 3 || names["save"] != 1 ||
			names["ReduceScatter"] == 0 || names["wait: ReduceScatter"] != names["ReduceScatter"] {
			t.Errorf("rank %d has %v", rank, names)
		}
	}
}

// A rank that waits for a state inside of its forward pass waits, and does not compute. A collective call beside the computation is hidden.
func TestTraceWaiting(t *testing.T) {
	var trace Trace
	if err := trace.start(nil); err != nil {
		t.Fatal(err)
	}
	trace.begin(computing)
	for _, call := range []string{"Receive", "AllGather"} {
		next := trace.observe(call)
		time.Sleep(time.Millisecond)
		next(false)
		time.Sleep(time.Millisecond)
		next(true)
	}
	trace.begin(exchanging)
	next := trace.observe("AllGather")
	next(false)
	next(true)
	if err := trace.stop(nil, true); err != nil {
		t.Fatal(err)
	}
	if own := trace.own; own.Sums[waiting] < 2*time.Millisecond || own.Sums[computing] < 2*time.Millisecond || own.Hidden < time.Millisecond || own.Exchange <= own.Hidden {
		t.Errorf("waiting %v, computing %v, %v of %v hidden", own.Sums[waiting], own.Sums[computing], own.Hidden, own.Exchange)
	}
}

// The table fits into a terminal of 80 columns, and each number stands under its name.
func TestTraceTable(t *testing.T) {
	long := rankTrace{Steps: 100_000, Exchange: 99_999 * 100 * time.Second, Hidden: 99_999 * 100 * time.Second} // 99,999 ms a step
	for p := range phases {
		long.Sums[p] = long.Exchange / time.Duration(phases)
	}
	short := rankTrace{Steps: 1}
	short.Sums[saving] = time.Second // 100%
	for _, ranks := range []int{1, 12, 1000} {
		trace := Trace{ranks: slices.Repeat([]rankTrace{long, short}, ranks)[:ranks]}
		lines := strings.Split(strings.TrimSuffix(trace.String(), "\n"), "\n")
		if len(lines) != 2+ranks {
			t.Errorf("%d ranks have %d lines", ranks, len(lines))
		}
		ends := regexp.MustCompile(`\S( |$)`)
		for i, line := range lines {
			if len(line) > 80 || len(line) != len(lines[1]) || i > 0 && !reflect.DeepEqual(ends.FindAllStringIndex(line, -1), ends.FindAllStringIndex(lines[1], -1)) {
				t.Errorf("%d columns, want at most 80 and numbers under the names of %q: %q", len(line), lines[1], line)
			}
		}
	}
}
