package train

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gorgonia.org/tensor"

	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/layer"
)

// stateFormat is the format's name in the metadata of a state file.
const stateFormat = "gomamba training state 2"

// state holds everything but tensors that the rest of a run depends on.
type state struct {
	Steps    int               `json:"steps"`
	Position Position          `json:"position"`
	Settings map[string]string `json:"settings"`
	Run      map[string]string `json:"run"`               // the trainer's own configuration; see record
	Batches  int               `json:"batches,omitempty"` // that were trained on
}

// The names of the curve's tensors. They have a colon, so they differ from the names of weights.
const (
	trainingSteps = "curve:training.steps"
	trainingLoss  = "curve:training.loss"
	heldOutSteps  = "curve:heldout.steps"
	heldOutLoss   = "curve:heldout.loss"
	metricValues  = "curve:metric:" // and the metric's name
)

func array(m Moment) tensorfile.Array {
	return tensorfile.Array{Name: m.Name, Shape: m.Value.Shape(), Data: m.Value.Data()}
}

// writeState replaces a state file.
func writeState(file string, s state, curve Curve, tensors []Moment) error {
	note, err := json.Marshal(s)
	if err != nil {
		return err
	}
	var arrays []tensorfile.Array
	for _, m := range tensors {
		arrays = append(arrays, array(m))
	}
	for _, part := range []struct {
		steps, loss string
		points      []Point
	}{{trainingSteps, trainingLoss, curve.Training}, {heldOutSteps, heldOutLoss, curve.HeldOut}} {
		steps, loss := make([]int64, len(part.points)), make([]float64, len(part.points))
		for i, p := range part.points {
			steps[i], loss[i] = int64(p.Step), p.Loss
		}
		shape := []int{len(part.points)}
		arrays = append(arrays, tensorfile.Array{Name: part.steps, Shape: shape, Data: steps}, tensorfile.Array{Name: part.loss, Shape: shape, Data: loss})
	}
	for _, name := range slices.Sorted(maps.Keys(curve.Metrics)) {
		values := curve.Metrics[name]
		arrays = append(arrays, tensorfile.Array{Name: metricValues + name, Shape: []int{len(values)}, Data: values})
	}
	metadata := map[string]string{"format": stateFormat, "state": string(note)}
	return tensorfile.Replace(file, func(w io.Writer) error { return tensorfile.WriteSealed(w, metadata, arrays) })
}

// saved is an open state file that has been checked: it is a file that writeState wrote, bit for bit.
type saved struct {
	*tensorfile.File
	state state
	curve Curve
	rest  map[string]*tensorfile.Tensor // all tensors but the curve's
}

// openState opens a state file and reads it, except for its weights and moments. The error is fs.ErrNotExist if there is none.
func openState(file string) (s *saved, err error) {
	f, err := tensorfile.Open(file)
	if err != nil {
		return nil, fmt.Errorf("train: %w", err)
	}
	defer func() {
		if err != nil {
			s, err = nil, fmt.Errorf("train: %s: %w", file, errors.Join(err, f.Close()))
		}
	}()
	if err := f.Check(); err != nil {
		return nil, err
	}
	s = &saved{File: f, rest: f.ByName()}
	if format := f.Metadata["format"]; format != stateFormat {
		return nil, fmt.Errorf("its format is %q, want %q", format, stateFormat)
	}
	if err := s.state.parse(f.Metadata["state"]); err != nil {
		return nil, fmt.Errorf("its note: %w", err)
	}
	if s.curve.Training, err = s.points(trainingSteps, trainingLoss); err != nil {
		return nil, err
	}
	if s.curve.HeldOut, err = s.points(heldOutSteps, heldOutLoss); err != nil {
		return nil, err
	}
	if err := s.metrics(); err != nil {
		return nil, err
	}
	if n := len(s.curve.Training); n != s.state.Steps {
		return nil, fmt.Errorf("its curve has %d steps, want %d as its note says", n, s.state.Steps)
	}
	return s, nil
}

// parse decodes a note. It must have every field and no others.
func (s *state) parse(text string) error {
	var there map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &there); err != nil {
		return err
	}
	for _, name := range []string{"steps", "position", "settings", "run"} {
		if _, ok := there[name]; !ok {
			return fmt.Errorf("%s is missing", name)
		}
	}
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(s); err != nil {
		return err
	}
	if s.Steps < 0 || s.Batches < 0 {
		return fmt.Errorf("steps is %d, want at least 0, and batches is %d, want at least 0", s.Steps, s.Batches)
	}
	again, err := json.Marshal(s) // finds missing fields of position, repeated fields, and names in other letters
	if err == nil && !bytes.Equal(again, []byte(text)) {
		err = fmt.Errorf("it is not as a Trainer writes it")
	}
	return err
}

// points removes one of the curves from the tensors and returns it.
func (s *saved) points(steps, loss string) ([]Point, error) {
	a, b := s.rest[steps], s.rest[loss]
	if a == nil || b == nil || len(a.Shape) != 1 || !slices.Equal(a.Shape, b.Shape) {
		return nil, fmt.Errorf("%s and %s are not two vectors of the same length", steps, loss)
	}
	delete(s.rest, steps)
	delete(s.rest, loss)
	x, y := make([]int64, a.Shape[0]), make([]float64, a.Shape[0])
	if err := tensorfile.Copy([]tensorfile.Job{{From: a, To: x}, {From: b, To: y}}); err != nil {
		return nil, err
	}
	var points []Point // nil if there are none, as at the beginning of a run
	for i := range x {
		if x[i] < 0 || x[i] > int64(s.state.Steps) || i > 0 && x[i] <= x[i-1] {
			return nil, fmt.Errorf("%s[%d] is %d, want more than the one before and at most %d", steps, i, x[i], s.state.Steps)
		}
		points = append(points, Point{int(x[i]), y[i]})
	}
	return points, nil
}

// metrics moves the values of the metrics from the tensors to the curve.
func (s *saved) metrics() error {
	for key, a := range s.rest {
		name, ok := strings.CutPrefix(key, metricValues)
		if !ok {
			continue
		}
		if !slices.Equal(a.Shape, []int{len(s.curve.HeldOut)}) {
			return fmt.Errorf("%s is not a vector of %d elements, as %s is", key, len(s.curve.HeldOut), heldOutLoss)
		}
		values := make([]float64, a.Shape[0])
		if err := tensorfile.Copy([]tensorfile.Job{{From: a, To: values}}); err != nil {
			return err
		}
		if s.curve.Metrics == nil {
			s.curve.Metrics = map[string][]float64{}
		}
		s.curve.Metrics[name] = values
		delete(s.rest, key)
	}
	return nil
}

// match returns an error unless the file has exactly these tensors.
func (s *saved) match(tensors []Moment) error {
	wants := make([]tensorfile.Want, len(tensors))
	for i, m := range tensors {
		d := tensorfile.Float32
		if m.Value.Dtype() == tensor.Float64 {
			d = tensorfile.Float64
		}
		wants[i] = tensorfile.Want{Name: m.Name, Shape: m.Value.Shape(), Dtype: d}
	}
	return tensorfile.Match(s.rest, wants, func(string) bool { return true })
}

// read reads tensors that match has checked.
func (s *saved) read(tensors []Moment) error {
	jobs := make([]tensorfile.Job, len(tensors))
	for i, m := range tensors {
		jobs[i] = tensorfile.Job{From: s.rest[m.Name], To: m.Value.Data()}
	}
	return tensorfile.Copy(jobs)
}

// Saved returns the number of steps after which a file was saved, and its Config.Settings. It reads the whole file, and returns an error if the
// file is not one that a Trainer saved, bit for bit. The error is fs.ErrNotExist if there is no file.
func Saved(file string) (steps int, settings map[string]string, err error) {
	s, err := openState(file)
	if err != nil {
		return 0, nil, err
	}
	return s.state.Steps, s.state.Settings, s.Close()
}

// Save writes everything that the rest of the run depends on to Config.File: weights, moments, the number of steps, the position in the data,
// the curve, Settings, and a description of the configuration and the data. It does nothing if Config.File is "".
//
// The file is replaced as a whole: a program or machine that stops at any moment leaves the old file or the new one. From the first
// Run, Resume or Save on, the trainer holds a lock on the file until Close. It is an error if another process holds that lock.
func (t *Trainer) Save() error {
	if err := t.enter("save"); err != nil {
		return err
	}
	defer t.mu.Unlock()
	if t.cfg.File == "" {
		return nil
	}
	t.doing("saving after step %d", t.Done())
	err := t.ready()
	if err == nil {
		err = t.meet()
	}
	if err == nil {
		err = t.save()
	}
	if err != nil {
		return t.cfg.Group.Fail(fmt.Errorf("train: save: %w", err))
	}
	return nil
}

func (t *Trainer) save() error {
	defer func() { t.whole = nil }()
	tensors, err := t.tensors(true)
	if err != nil {
		return err
	}
	run, err := t.record()
	if err != nil {
		return err
	}
	if t.cfg.Group.Rank() == 0 {
		err = writeState(t.cfg.File, state{t.Done(), t.source.Position(), t.cfg.Settings, run, t.batches}, t.curve, tensors)
	}
	if err != nil {
		return err
	}
	return t.cfg.Group.Barrier() // a rank that goes on knows that the state is saved
}

// Resume continues the run that was saved to Config.File. If there is no such file, resumed is false. The trainer then continues with the same
// results as the run that saved the file would have had, bit for bit on the same device.
//
// It is an error, and nothing changes, if the file is not one that a Trainer saved, if another process is using it, or if anything that the run
// depends on differs: Settings, the model's configuration and frozen weights, Data, HeldOut, or any field of Config but EvalEvery, SaveEvery,
// Report and Options. The error names what differs. If the disk fails while the weights are read, all later calls of the trainer return this
// error.
//
// With a Group all ranks call Resume. Rank 0 reads the file and sends the others what they need. The number of ranks may differ from that of the run that saved
// the file; then the number of batches of a step differs too, unless Accumulate makes up for it.
func (t *Trainer) Resume() (resumed bool, err error) {
	if err := t.enter("resume"); err != nil {
		return false, err
	}
	defer t.mu.Unlock()
	if t.cfg.File == "" {
		return false, nil
	}
	if err := t.meet(); err != nil {
		return false, t.cfg.Group.Fail(fmt.Errorf("train: %w", err))
	}
	if t.cfg.Group.Rank() == 0 {
		resumed, err = t.resumeFile()
	}
	if err == nil {
		resumed, err = t.resumeOthers(resumed)
	}
	return resumed, t.cfg.Group.Fail(err)
}

// resumeFile is Resume for the rank that has the file.
func (t *Trainer) resumeFile() (resumed bool, err error) {
	if err := t.ready(); err != nil {
		if errors.Is(err, fs.ErrNotExist) { // the folder does not exist
			return false, nil
		}
		return false, fmt.Errorf("train: resume: %w", err)
	}
	s, err := openState(t.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := t.resume(s); err != nil {
		return false, fmt.Errorf("train: %s: %w", t.cfg.File, err)
	}
	return true, nil
}

func (t *Trainer) resume(s *saved) error {
	was, is := s.state.Settings, t.cfg.Settings
	if names := differing(was, is); len(names) > 0 {
		return fmt.Errorf("it was saved with %s %q, want the same to go on, not %q", names[0], was[names[0]], is[names[0]])
	}
	run, err := t.record()
	if err != nil {
		return err
	}
	tensors, err := t.tensors(false)
	if err != nil {
		return err
	}
	err = s.match(tensors)
	var diff []string
	for _, name := range differing(regrouped(s.state.Run, run)) {
		diff = append(diff, fmt.Sprintf("%s was %q and is %q", name, s.state.Run[name], run[name]))
	}
	if diff != nil {
		err = errors.Join(fmt.Errorf("it was saved by another run: %s; want the same to go on", strings.Join(diff, "; ")), err)
	}
	if err != nil {
		return err
	}
	if had, want := slices.Sorted(maps.Keys(s.curve.Metrics)), t.scorer.metrics(); len(s.curve.HeldOut) > 0 && !slices.Equal(had, want) {
		return fmt.Errorf("its curve has the metrics %q, want %q", had, want)
	}
	if s.state.Steps > t.cfg.Steps {
		return fmt.Errorf("it was saved after step %d, want at most %d", s.state.Steps, t.cfg.Steps)
	}
	before := t.source.Position()
	if err := t.source.Go(s.state.Position); err != nil {
		return errors.Join(err, t.source.Go(before))
	}
	if err := s.read(tensors); err != nil {
		t.broken = fmt.Errorf("the weights are incomplete after a failed Resume: %w", err)
		return err
	}
	t.params.ValuesChanged()
	t.all.Statistics().ValuesChanged()
	t.solver.SetSteps(s.state.Steps)
	t.curve = s.curve
	if t.batches = s.state.Batches; t.batches == 0 { // a file of before the number was saved, or of no step
		t.batches = s.state.Steps * batchesOf(s.state.Run)
	}
	return nil
}

// ready returns an error if a Resume has failed in the middle, and locks the trainer's file.
func (t *Trainer) ready() (err error) {
	if t.broken != nil || t.cfg.File == "" || t.lock != nil || t.cfg.Group.Rank() != 0 {
		return t.broken
	}
	t.lock, err = tensorfile.Acquire(t.cfg.File)
	return err
}

// differing returns the names whose values differ in two maps, sorted.
func differing(a, b map[string]string) (names []string) {
	all := slices.Collect(maps.Keys(a))
	all = slices.AppendSeq(all, maps.Keys(b))
	slices.Sort(all)
	for _, name := range slices.Compact(all) {
		x, inA := a[name]
		if y, inB := b[name]; x != y || inA != inB {
			names = append(names, name)
		}
	}
	return names
}

// regrouped returns two records without the number of ranks, and without Accumulate if their steps have equally many batches: a run goes on with another
// number of ranks.
func regrouped(was, is map[string]string) (map[string]string, map[string]string) {
	was, is = maps.Clone(was), maps.Clone(is)
	if batchesOf(was) == batchesOf(is) {
		was["Accumulate"] = is["Accumulate"]
	}
	delete(was, "ranks")
	delete(is, "ranks")
	return was, is
}

// batchesOf returns the number of batches of a step of a recorded run.
func batchesOf(run map[string]string) int {
	n, _ := strconv.Atoi(run["Accumulate"])
	ranks, _ := strconv.Atoi(run["ranks"])
	return n * max(ranks, 1)
}

// scheduleSamples is the largest number of steps for which record calls the schedule.
const scheduleSamples = 1 << 16

// record returns a description, by name, of everything that the run depends on and that is neither in Settings nor a saved tensor. It describes
// large values by a hash. It is computed once, since frozen weights and data do not change during a run.
func (t *Trainer) record() (map[string]string, error) {
	if t.recorded != nil {
		return t.recorded, nil
	}
	c := t.cfg
	all := t.describe()
	all["Steps"], all["Accumulate"] = fmt.Sprint(c.Steps), fmt.Sprint(c.Accumulate)
	if n := t.shares(); n > 1 {
		all["ranks"] = fmt.Sprint(n)
	}
	if names := t.scorer.metrics(); len(names) > 0 {
		all["metrics"] = strings.Join(names, ", ")
	}
	addFields(all, "AdamW.", reflect.ValueOf(t.solver.cfg))
	schedule := sha256.New()
	apart := (c.Steps-1)/scheduleSamples + 1 // of more steps, some: a run of any number of steps is saved in a moment
	for step := 1; step <= c.Steps && step > 0; step += apart {
		hashNumbers(schedule, int64(math.Float64bits(t.solver.cfg.factor(step))))
	}
	all["AdamW.Schedule"] = fmt.Sprintf("%d steps, hash %s", c.Steps, sum(schedule))

	frozen, trained := []tensorfile.Array{}, sha256.New()
	if err := t.all.ToHost(); err != nil {
		return nil, err
	}
	n := 0
	for _, w := range t.all {
		weights := layer.Params{w}
		if l := w.LoRA(); l != nil {
			weights = append(weights, l.A, l.B)
			fmt.Fprintf(trained, "%q scale %x\n", w.Name, math.Float64bits(l.Scale))
		}
		for _, p := range weights {
			if p.Frozen && !p.Statistic {
				frozen = append(frozen, array(Moment{p.Name, p.Value}))
			} else {
				fmt.Fprintf(trained, "%q %v %v decay %t\n", p.Name, p.Value.Dtype(), p.Value.Shape(), p.Decay)
				n++
			}
		}
	}
	all["trained weights"] = fmt.Sprintf("%d, hash %s", n, sum(trained)) // names, types, shapes, decay, scales of LoRA
	hash, err := tensorfile.Hash(frozen)
	if err != nil {
		return nil, err
	}
	all["frozen weights"] = fmt.Sprintf("%d, hash %.16s", len(frozen), hash)
	t.recorded = all
	return all, nil
}

// addFields adds the fields of a configuration that are not functions.
func addFields(all map[string]string, prefix string, v reflect.Value) {
	for i := range v.NumField() {
		switch f := v.Type().Field(i); {
		case f.Anonymous:
			addFields(all, prefix, v.Field(i))
		case f.Type.Kind() != reflect.Func:
			all[prefix+f.Name] = fmt.Sprint(v.Field(i).Interface())
		}
	}
}

func describeDocuments(docs []Document) string {
	h, tokens := sha256.New(), 0
	for _, d := range docs {
		hashNumbers(h, int64(len(d.Tokens)), int64(d.Prompt))
		hashInts(h, d.Tokens)
		tokens += len(d.Tokens)
	}
	return fmt.Sprintf("%d documents of %d tokens, hash %s", len(docs), tokens, sum(h))
}

// describeBatches returns a function that describes the data of a run by a hash. It computes the hash of the first batch now, since its tensors
// may change.
func describeBatches(first Batch, heldOut []Batch) func() map[string]string {
	data := sha256.New()
	first.hash(data)
	return func() map[string]string {
		evaluation := sha256.New()
		for _, b := range heldOut {
			b.hash(evaluation)
		}
		return map[string]string{"Data": "first batch, hash " + sum(data), "HeldOut": fmt.Sprintf("%d batches, hash %s", len(heldOut), sum(evaluation))}
	}
}

func hashInts(h hash.Hash, all []int) {
	for part := range slices.Chunk(all, 512) {
		numbers := make([]int64, len(part))
		for i, x := range part {
			numbers[i] = int64(x)
		}
		hashNumbers(h, numbers...)
	}
}

func hashNumbers(h hash.Hash, numbers ...int64) {
	b, err := binary.Append(nil, binary.LittleEndian, numbers)
	if err != nil {
		panic(err) // int64 has a size
	}
	h.Write(b)
}

// sum returns the first part of a hash, which is long enough to distinguish runs.
func sum(h hash.Hash) string { return hex.EncodeToString(h.Sum(nil)[:8]) }
