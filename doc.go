// Package mamba is the front page of Mamba for Gorgonia.
package mamba

import (
	// Gorgonia v0.9.18 reaches a version of this package that panics on every Go newer than it knows.
	// Naming it here keeps the requirement of a fixed version in our go.mod, and in that of everyone who imports us.
	_ "go4.org/unsafe/assume-no-moving-gc"
)
