// Package vision has what images need in addition to package nn: metrics of classification and segmentation.
//
// The metrics are plain functions on slices. A map of classes is a slice of int in row-major order, one for each cell of the grid; Labels makes it
// from logits.
package vision
