// Package models has what the examples share to find a model.
package models

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/gomamba/mamba/tokens"
)

// Directory returns the folder or GGUF file of a model: name itself, or a repository of the hub in the cache, which it downloads. flag is for errors.
func Directory(ctx context.Context, flag, name string, stderr io.Writer) (string, error) {
	info, err := os.Stat(name)
	if err == nil && (info.IsDir() || strings.HasSuffix(name, ".gguf")) {
		return name, nil
	}
	if err != nil && strings.HasSuffix(name, ".gguf") {
		return "", fmt.Errorf("%s is %q, should be a GGUF file that exists: %w", flag, name, err)
	}
	if err == nil || !tokens.IsRepository(name) {
		return "", fmt.Errorf("%s is %q, should be a directory, or OWNER/NAME of the Hugging Face hub", flag, name)
	}
	show := progress{out: stderr}
	defer show.finish()
	dir, err := tokens.Download(ctx, name, tokens.DownloadConfig{Progress: show.show})
	if err != nil {
		return "", fmt.Errorf("%s is %q, which is no directory here: %w", flag, name, err)
	}
	return dir, nil
}

// CheckWeights returns an error if the value of -weights is no type that checkpoint.Weights has. It may be empty.
func CheckWeights(types string) error {
	if types != "" && !slices.Contains([]string{"float32", "bf16", "int8", "int4", "file"}, types) {
		return fmt.Errorf("-weights is %q, should be float32, bf16, int8, int4 or file", types)
	}
	return nil
}
