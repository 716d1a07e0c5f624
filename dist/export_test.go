package dist

import (
	"context"
	"net"
)

// Meet connects a rank as Join does without MPI, but without a GPU.
func Meet(ctx context.Context, rank, size int, host, port string) (Engine, error) {
	return meet(ctx, launch{by: "a test", rank: rank, size: size, host: host, port: port})
}

// SetPiece makes ReduceScatter and AllReduce move at most n elements of each rank in a round.
func (g *Group) SetPiece(n int) { g.pieceForTests = n }

// Launched returns what the environment says about this process.
func Launched() (by string, rank, size, local int, address string, err error) {
	l, err := launched()
	if l.host != "" {
		address = net.JoinHostPort(l.host, l.port) + " "
	}
	return l.by, l.rank, l.size, l.local, address, err
}

// LauncherVariables returns the names of all environment variables that Launched reads.
func LauncherVariables() []string {
	names := []string{"PET_NPROC_PER_NODE", "TORCHELASTIC_RUN_ID"}
	for _, l := range launchers {
		for _, name := range []string{l.size, l.rank, l.local, l.host, l.port} {
			if name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// SetMostBytes makes the MPI engine cut messages into pieces of at most n bytes, and those through NCCL into pieces of about as many.
func SetMostBytes(n int) { mostBytes, leastLarge, bufferBytes = n, 100, 4*n }

// Listen makes the group hear news, as the first Devices do.
func (g *Group) Listen() { g.listen() }

// Lost returns the error of a rank that the news have told.
func (g *Group) Lost() error { return g.lost() }
