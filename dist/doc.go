// Package dist joins the processes of a distributed run to a group and moves numbers between them.
//
//	group, err := dist.Join(ctx)
//	if err != nil {
//		return err
//	}
//	defer group.Close()
//	err = dist.AllReduce(group, gradients) // gradients is the sum over all ranks now
//
// Start one process for each rank with the launcher of an MPI library or of a cluster:
//
//	mpirun -n 4 program
//	srun --mpi=pmix -n 4 program
//
// or, where each process has a GPU, with torchrun or another launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT:
//
//	torchrun --nproc-per-node 4 --no-python program
//
// A program that was started alone is a group of one. It needs no library, and all calls return at once.
//
// # Engines
//
// MPI moves numbers in host memory. Join loads the library at run time, so the program needs no cgo and the same binary runs with Open MPI 4
// and 5, with MPICH 3 and newer and the libraries that share its ABI (Intel MPI, MVAPICH), and with the standard ABI of MPI 5.0. The environment
// variable MAMBA_MPI names the library's file if it is in none of the usual places. Open MPI 4.1.4 and MPICH 4.0.2 are tested.
//
// NCCL moves arrays between GPUs: Group.Devices. Without MPI it also moves what is large in host memory, and TCP connections between all ranks move the rest. MAMBA_NCCL
// names its file. Two ranks were tested on two H200 GPUs, more with the stand-in for GPUs.
//
// Any other transport can implement Engine.
//
// # Results
//
// This package makes all sums of host memory itself, in the order of the ranks: in float32 for BFloat16, else in the type of the elements. So the result has the same bits on
// every rank, in every run with the same number of ranks, and with every library. AllReduceOn and ReduceScatterOn say what the sums of arrays on GPUs are.
//
// # Calls in the same order
//
// All ranks make the same collective calls in the same order: AllReduce, ReduceScatter, AllGather, Broadcast, GatherBytes, Barrier and Close. Each call
// begins with an exchange of what the ranks are about to do. A rank that does something else is an error on all ranks. A rank that
// cannot go on calls Fail, and the current or next call of all other ranks returns its error.
//
// # Lost ranks
//
// Each rank sends a sign of life to the next one. If a rank is silent for 30 s (WithTimeout), because its process or machine is gone or stopped, the
// next rank writes one line to standard error that says so, and ends the processes of all ranks with exit code 1. A process whose rank makes no progress (Watch) does the same, and
// one whose call on arrays of the GPU has begun and does not end.
package dist
