package options

import (
	"flag"
	"io"
	"strings"
	"testing"

	"github.com/gomamba/mamba/cuda"
)

func TestDevice(t *testing.T) {
	for args, want := range map[string]string{
		"":                                  "",
		"-device cpu":                       "",
		"-device cuda":                      "",
		"-device cuda -precision bf16":      "",
		"-device cuda -precision fp16x3":    "",
		"-device tpu":                       `-device is "tpu", should be cpu or cuda`,
		"-device cuda -precision half":      `-precision is "half", should be float32, fp16x3, tf32 or bf16`,
		"-precision tf32":                   `-precision is "tf32", should be float32 without -device cuda`,
		"-device cpu -precision float32":    "",
		"-device cuda -precision BF16":      `-precision is "BF16", should be`,
		"-device cuda -precision float32":   "",
		"-device \"\" -precision \"bf16\" ": `-device is "\"\"", should be`,
	} {
		var d Device
		flags := flag.NewFlagSet("", flag.ContinueOnError)
		d.Flags(flags)
		if err := Parse(flags, strings.Fields(args), io.Discard, "", ""); err != nil {
			t.Fatal(err)
		}
		err := d.Check()
		if want == "" && err != nil || want != "" && (err == nil || !strings.HasPrefix(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
		if err != nil {
			continue
		}
		model, name, shut, err := d.Open()
		there, wrong := cuda.Open(0)
		switch {
		case d.GPU() && wrong != nil:
			if err == nil || err.Error() != wrong.Error() {
				t.Errorf("%s: %v, want %v", args, err, wrong)
			}
			continue
		case wrong == nil:
			there.Close()
		}
		if err != nil || d.GPU() != (len(model) > 0) || d.GPU() != (name != "") {
			t.Errorf("%s: %d options, called %q: %v", args, len(model), name, err)
			continue
		}
		shut()
	}
}
