package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/gomamba/mamba/examples/internal/models"
	"github.com/gomamba/mamba/internal/tensorfile"
	"github.com/gomamba/mamba/nn"
	"github.com/gomamba/mamba/train"
)

// folders returns the folders of -model and of -adapter, which is "" if the flag is not set.
func folders(ctx context.Context, set settings, stderr io.Writer) (model, adapter string, err error) {
	if set.adapter != "" {
		if adapter, err = models.Directory(ctx, "-adapter", set.adapter, stderr); err != nil {
			return "", "", err
		}
		if !isAdapter(adapter) {
			return "", "", fmt.Errorf("-adapter is %q, which has no adapter_config.json, should be the folder of a LoRA adapter", set.adapter)
		}
		if set.model == "" {
			return "", "", fmt.Errorf("-model is missing, should be the base model of the adapter%s", named(adapter))
		}
	}
	if model, err = models.Directory(ctx, "-model", set.model, stderr); err != nil {
		return "", "", err
	}
	if _, err := os.Stat(filepath.Join(model, "config.json")); errors.Is(err, os.ErrNotExist) && isAdapter(model) {
		return "", "", fmt.Errorf("-model is %q, which is a LoRA adapter: give its base model%s with -model, and this folder with -adapter", set.model, named(model))
	}
	return model, adapter, nil
}

func isAdapter(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "adapter_config.json"))
	return err == nil
}

// named returns the name of an adapter's base model in brackets, for an error, or "" if the adapter does not tell.
func named(dir string) string {
	text, err := tensorfile.ReadFile(filepath.Join(dir, "adapter_config.json"), 1<<20)
	var config struct {
		Base string `json:"base_model_name_or_path"`
	}
	if err != nil || json.Unmarshal(text, &config) != nil || config.Base == "" {
		return ""
	}
	return fmt.Sprintf(" (%.200q)", config.Base)
}

// adapt gives the model the LoRA in a folder.
func adapt(lm *nn.LM, set settings, dir string, stderr io.Writer) error {
	params := lm.Params()
	if err := train.LoadLoRA(dir, params); err != nil {
		return fmt.Errorf("-adapter is %q, for the base model%s: %w", set.adapter, named(dir), err)
	}
	count, how := 0, ""
	for _, p := range params {
		if p.LoRA() != nil {
			count++
		}
	}
	if set.merge {
		if _, err := params.MergeLoRA(); err != nil {
			return err
		}
		how = ", merged"
	}
	_, err := fmt.Fprintf(stderr, "adapter  LoRA, weights: %d%s\n", count, how)
	return err
}
