// Package vision has models of images and volumes on selective scans, and metrics of classification and segmentation. VMamba and Vim classify images;
// MambaUNet segments images and volumes.
//
// Images are (batch, height, width, channels), volumes (batch, depth, height, width, channels), of any size. A model works like those of package nn: its
// constructor takes a configuration and the options of package layer, such as layer.OnDevice, and the model keeps the error of a wrong configuration. Apply
// adds the model to the graph of its input. Weights are separate from graphs and have the names of the published files. nn.WithTraining turns on the
// dropping of paths.
//
// The metrics are plain functions on slices. A map of classes is a slice of int in row-major order, one for each cell of the grid; Labels makes it
// from logits.
package vision
