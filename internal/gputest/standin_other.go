//go:build !linux || !(amd64 || arm64)

package gputest

import "testing"

func standin() bool { return false }

func limit(t testing.TB, _ string) Limit {
	t.Helper()
	needStandin(t)
	return nil
}

func alive() string { return "" }
