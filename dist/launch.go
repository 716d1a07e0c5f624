package dist

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// launch is what a launcher says about a process.
type launch struct {
	by                string // names the launcher
	mpi               bool   // whether it starts programs that use MPI
	pmi               bool   // whether its MPI is MPICH or a relative of it
	rank, size, local int
	host, port        string // where rank 0 listens, if the launcher says so
}

// launchers are the variables that launchers set, in the order in which they count: mpirun may run inside a job of Slurm, which may run inside a pod.
//
// Slurm sets SLURM_NTASKS for the script of a job as well, which is one process. Only srun sets SLURM_STEP_NUM_TASKS. It also sets it to 1 in an interactive shell and, with
// "srun torchrun", to the number of machines: RANK and WORLD_SIZE count more.
var launchers = []struct {
	by                string
	mpi, pmi          bool
	size, rank, local string
	host, port        string
}{
	{"Open MPI's mpirun", true, false, "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "", ""},
	{"mpirun or srun", true, true, "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "", ""},
	{"srun", true, false, "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "MASTER_ADDR", "MASTER_PORT"}, // without MPI if these are set
	{"torchrun or a launcher like it", false, false, "WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"},
	{"Kubeflow", false, false, "PET_NNODES", "PET_NODE_RANK", "", "PET_MASTER_ADDR", "PET_MASTER_PORT"},
}

// launched returns what the environment says about this process. A process that was started alone is rank 0 of 1.
func launched() (launch, error) {
	inner := os.Getenv("WORLD_SIZE") != "" && os.Getenv("RANK") != "" // set by hand or by torchrun, which srun or mpirun may have started
	torchrun := inner && os.Getenv("TORCHELASTIC_RUN_ID") != ""
	for _, l := range launchers {
		size, rank := os.Getenv(l.size), os.Getenv(l.rank)
		switch {
		case torchrun && l.mpi || inner && l.by == "srun":
			continue // the variables of the launcher's own launcher
		case l.by == "Kubeflow" && strings.Contains(size, ":"):
			return launch{}, fmt.Errorf("dist: the environment variable %s is %q, the least and the largest number of pods of an elastic job, want one number: a run keeps its number of ranks", l.size, size)
		case size == "" && (rank == "" || l.rank == "SLURM_PROCID"):
			continue
		case size == "":
			return launch{}, fmt.Errorf("dist: the environment variable %s is %q and %s is not set, want both, as %s sets them, or neither for one process", l.rank, rank, l.size, l.by)
		case rank == "":
			return launch{}, fmt.Errorf("dist: the environment variable %s is %q and %s is not set, want both, as %s sets them, or neither for one process", l.size, size, l.rank, l.by)
		}
		found := launch{by: l.by, mpi: l.mpi, pmi: l.pmi}
		var err error
		if found.size, err = number(l.size, 1, 1<<20); err != nil {
			return launch{}, err
		}
		if found.rank, err = number(l.rank, 0, found.size-1); err != nil {
			return launch{}, err
		}
		if l.local == "" {
			switch n := os.Getenv("PET_NPROC_PER_NODE"); n {
			case "", "1":
			case "auto", "cpu", "gpu", "xpu":
				return launch{}, fmt.Errorf("dist: PET_NPROC_PER_NODE is %q, which is as many processes in each pod as it has GPUs or processors, want 1: each pod has one process here", n)
			default:
				return launch{}, fmt.Errorf("dist: PET_NPROC_PER_NODE is %q, want 1: PET_NNODES and PET_NODE_RANK describe pods, and each has one process", n)
			}
		} else if os.Getenv(l.local) == "" && found.size > 1 {
			found.local = -1 // Join counts
		} else if found.local, err = number(l.local, 0, found.size-1); err != nil {
			return launch{}, err
		}
		if l.host == "" || found.size == 1 || os.Getenv(l.host) == "" && os.Getenv(l.port) == "" {
			return found, nil
		}
		if found.host = strings.Trim(os.Getenv(l.host), "[]"); found.host == "" { // IPv6 is often written in brackets
			return launch{}, fmt.Errorf("dist: the environment variable %s is set and %s is not, want the address of the machine of rank 0", l.port, l.host)
		}
		port, err := number(l.port, 1, 1<<16-1)
		if err == nil && port == 0 {
			err = fmt.Errorf("dist: the environment variable %s is set and %s is not, want a free port of that machine", l.host, l.port)
		}
		if err != nil {
			return launch{}, err
		}
		found.port, found.mpi = strconv.Itoa(port), false
		return found, nil
	}
	return launch{by: "nobody", size: 1}, nil
}

// number returns the value of an environment variable, 0 if it is not set.
func number(name string, least, most int) (int, error) {
	text := os.Getenv(name)
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("dist: the environment variable %s is %q, want a whole number from %d to %d", name, text, least, most)
	}
	return n, nil
}
