package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/gomamba/mamba/dist/disttest"
)

// Two processes print once, and end where one process that accumulates as many batches does. With -resume the command is done.
func TestDistributed(t *testing.T) {
	data := writeLines(t, 60)
	arguments := func(out string, more ...string) []string {
		return slices.Concat(tiny, []string{"-data", data, "-basesteps", "3", "-layers", "1", "-dmodel", "16", "-out", out}, more)
	}
	dir := t.TempDir()
	library := disttest.Libraries[0]
	two := filepath.Join(dir, "two")
	lines := disttest.Output(t, library.Start(t, 2, asProgram, "1", arguments(two, "-distributed", "-shard", "-trace")...))
	text := strings.Join(lines, "\n")
	if strings.Count(text, "finetune    all weights") != 1 || !strings.Contains(text, "batch: 2 x 1 x 2, length: 32") || strings.Count(text, "trace  ") != 1 || !strings.Contains(text, "\n4 steps ") || !strings.Contains(text, "\n   1 ") {
		t.Errorf("two processes print\n%s", text)
	}
	for _, file := range []string{"config.json", "model.safetensors", "loss.png", "train.safetensors", "trace.json"} {
		if _, err := os.Stat(filepath.Join(two, file)); err != nil {
			t.Error(err)
		}
	}
	again := strings.Join(disttest.Output(t, library.Start(t, 2, asProgram, "1", arguments(two, "-distributed", "-resume", "-segments")...)), "\n")
	perplexities := regexp.MustCompile(`perplexity per .*\n.*`).FindString(text)
	if !strings.Contains(again, "resumed     after step 4 of 4") || perplexities == "" || !strings.Contains(again, perplexities[strings.LastIndex(perplexities, " "):]) {
		t.Errorf("resumed, two processes print\n%s\nafter\n%s", again, text)
	}
	// The training itself is compared in package train. Here one rank fails.
	cmd := library.Start(t, 2, asProgram, "1", arguments(two, "-distributed")...)
	cmd.Args = append(cmd.Args, "-model", filepath.Join(dir, "none"))
	out, err := cmd.CombinedOutput()
	if err == nil || strings.Count(string(out), "finetune: ") != 1 {
		t.Errorf("without a model: %v, two processes print\n%s", err, out)
	}
}

// The commands of docs/distributed.md and of the manifest for Kubernetes have flags of this program.
func TestDocumentedFlags(t *testing.T) {
	n := 0
	for _, file := range []string{"distributed.md", "kubernetes.yaml"} {
		text, err := os.ReadFile(filepath.Join("../../docs", file))
		if err != nil {
			t.Fatal(err)
		}
		for _, command := range regexp.MustCompile("finetune((,? -\\w+(,? [^-\\s…`][^\\s,`\\]]*)?)+)").FindAllStringSubmatch(string(text), -1) {
			if _, err := parse(strings.Fields(strings.ReplaceAll(command[1], ",", " ")), io.Discard); err != nil {
				t.Errorf("%s: finetune%s: %v", file, command[1], err)
			}
			n++
		}
	}
	if n < 10 {
		t.Errorf("%d commands, want more", n)
	}
}
