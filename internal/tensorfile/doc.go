// Package tensorfile is the only place where tensors are read from files and saved to them.
//
// Replace replaces a file as a whole. Lock keeps other processes from writing to it at the same time. Folder does the same
// work for several files that belong together.
package tensorfile
