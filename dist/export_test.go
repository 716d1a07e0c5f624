package dist

// SetPiece makes ReduceScatter and AllReduce move at most n elements of each rank in a round.
func (g *Group) SetPiece(n int) { g.pieceForTests = n }

// Launched returns what the environment says about this process.
func Launched() (by string, rank, size, local int, err error) {
	l, err := launched()
	return l.by, l.rank, l.size, l.local, err
}

// LauncherVariables returns the names of all environment variables that Launched reads.
func LauncherVariables() []string {
	names := []string{"PET_NPROC_PER_NODE"}
	for _, l := range launchers {
		names = append(names, l.size, l.rank)
		if l.local != "" {
			names = append(names, l.local)
		}
	}
	return names
}

// SetMostBytes makes the MPI engine cut messages into pieces of at most n bytes.
func SetMostBytes(n int) { mostBytes = n }
