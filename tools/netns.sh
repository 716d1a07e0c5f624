#!/usr/bin/env bash
# Runs a program as two processes in two network namespaces of this machine, under Open MPI and MPICH, so that their messages cross a network. Needs root, iproute2 and
# util-linux. The namespaces have no way to other networks, and are removed at the end.
#
#	go build -o finetune ./examples/finetune
#	tools/netns.sh ./finetune -distributed -shard -steps 20 -basesteps 20 -out OUT      # OUT stands for a new folder for each library
#	NETNS_RATE=1gbit tools/netns.sh PROGRAM …                                           # a slower network
set -euo pipefail
[ $# -gt 0 ] || { sed -n '2,/^set/p' "$0" | grep '^#'; exit 2; }
program=$(realpath "$1")
shift

if [ -z "${NETNS_INSIDE:-}" ]; then # in a mount namespace of its own, so that what the kernel mounts for namespaces vanishes with this script
	NETNS_INSIDE=1 exec unshare --mount --uts "$0" "$program" "$@"
fi

a=mamba-$$-a b=mamba-$$-b
work=$(mktemp -d)
trap 'ip netns del $a 2>/dev/null || true; ip netns del $b 2>/dev/null || true; rm -rf "$work"' EXIT
ip netns add $a
ip netns add $b
ip -n $a link add eth0 type veth peer name eth0 netns $b
for pair in "$a 10.77.0.1" "$b 10.77.0.2"; do
	read -r name address <<< "$pair"
	ip -n "$name" addr add "$address/24" dev eth0
	ip -n "$name" link set eth0 up
	ip -n "$name" link set lo up
	[ -z "${NETNS_RATE:-}" ] || ip netns exec "$name" tc qdisc add dev eth0 root tbf rate "$NETNS_RATE" burst 256kb latency 50ms
done

# What the launchers call instead of ssh: [options] address command…. Each namespace has a host name of its own, as a machine has.
cat > "$work/enter" <<END
#!/bin/sh
while :; do case \$1 in -*) shift;; *) break;; esac; done
case \$1 in 10.77.0.1) name=$a;; 10.77.0.2) name=$b;; *) echo "no namespace for \$1" >&2; exit 1;; esac
shift
exec ip netns exec \$name unshare --uts sh -c "hostname \$name; \$*"
END
chmod +x "$work/enter"
hostname $a # mpirun runs in the first namespace

bytes() { ip netns exec $a cat /sys/class/net/eth0/statistics/rx_bytes; }
run() { # name, library, launcher…
	local name=$1 library=$2 before began
	shift 2
	command -v "$1" >/dev/null || { echo "== $name: skipped: no $1"; return; }
	before=$(bytes) began=$(date +%s.%N)
	echo "== $name"
	ip netns exec $a env MAMBA_MPI="$library" "$@"
	echo "== $name: $(($(bytes) - before)) bytes have come to the first namespace, in $(date +%s.%N | awk -v b="$began" '{printf "%.1f", $1 - b}') s"
}
out() { for x in "${arguments[@]}"; do [ "$x" = OUT ] && x=$work/$1; printf '%s\0' "$x"; done; }
arguments=("$@")
mapfile -d '' -t first < <(out openmpi)
mapfile -d '' -t second < <(out mpich)
run "Open MPI" libmpi.so.40 mpirun.openmpi --allow-run-as-root --bind-to none --mca plm_rsh_agent "$work/enter" --mca oob_tcp_if_include eth0 --mca btl tcp,self --mca btl_tcp_if_include eth0 \
	--host 10.77.0.1,10.77.0.2 -n 2 "$program" "${first[@]}"
# UCX, on which Debian builds MPICH, sees that the processes share a machine, and would use its memory.
export UCX_TLS=tcp,self UCX_NET_DEVICES=eth0 FI_PROVIDER=tcp
run MPICH libmpich.so.12 mpirun.mpich -launcher ssh -launcher-exec "$work/enter" -iface eth0 -hosts 10.77.0.1,10.77.0.2 -n 2 "$program" "${second[@]}"
for file in "$work"/openmpi/*.safetensors; do
	[ -e "$file" ] || continue
	cmp "$file" "$work/mpich/$(basename "$file")" && echo "== $(basename "$file"): the same bits with both libraries"
done
