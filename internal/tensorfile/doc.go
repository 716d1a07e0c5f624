// Package tensorfile is the only place where tensors are read from files and saved to them.
//
// Open and Read check a file in the safetensors format before they believe it; Fill and Copy read its tensors. Write writes weights
// for other programs. WriteSealed writes our own files, with a checksum that File.Check compares. Weights for other programs have no
// checksum, since those programs may change tensors and keep the metadata.
//
// Replace replaces one file as a whole, and Folder.ReplaceAll several files together. Acquire keeps other processes from saving at the
// same time.
package tensorfile
