#!/usr/bin/env bash
# Hosts with slow links between them, on one machine: network namespaces on a bridge, each with
# several ranks. It needs root, and packages that setup.sh installs.
#
#   scripts/link_lab.sh up --hosts 2 --ranks-per-host 2 --rate 100mbit [--latency 1ms]
#   scripts/link_lab.sh run -- build/switchyard train configs/tiny_bigmac.yaml
#   scripts/link_lab.sh down
#
# `run` starts hosts * ranks-per-host ranks, those of one host one after the other. Ranks of one
# host reach each other through shared memory, all others over the links. The environment reaches
# every rank; where it has no OMP_NUM_THREADS, ranks share the cores.
#
#   --rate     of each host's link, in each direction: a whole number and kbit, mbit or gbit
#   --latency  one-way time between two hosts, beside what the rate makes of a message's size
#
# SWITCHYARD_LINK_LAB names the lab ("lab" if it is not set), so that several can be up at once.
# Everything that `up` makes lies in namespaces of its own, which it records with their inodes;
# `down` removes these and nothing else. docs/scaling.md says what the links add to a transfer.
set -euo pipefail

lab="${SWITCHYARD_LINK_LAB:-lab}"
state="/run/switchyard-link-lab/$lab"
made="$state/made"  # "namespace inode" per line
subnet=10.77.0.0/16
# A link to this script. mpirun cuts the command of its agent at spaces and colons, which the path
# of the script may hold, and this one cannot.
agent="$state/agent"
packet=1514  # bytes, with Ethernet's header
script="$(readlink -f "${BASH_SOURCE[0]}")"

fail() {
  echo "link_lab: $*" >&2
  exit 1
}

address_of() { echo "10.77.$(($1 / 200)).$(($1 % 200 + 1))"; }
namespace_of() { echo "switchyard-$lab-$1"; }  # of host NUMBER, or of the switch
inode_of() { stat -L -c %i "/run/netns/$1" 2>/dev/null || true; }

check_machine() {
  [[ "$lab" =~ ^[a-z0-9]{1,16}$ ]] ||
    fail "SWITCHYARD_LINK_LAB is '$lab'; use at most 16 small letters and digits"
  (($(id -u) == 0)) || fail "network namespaces need root; run this as root"
  local tool
  for tool in ip tc nsenter unshare mpirun; do
    command -v "$tool" >/dev/null || fail "$tool is not installed; run scripts/setup.sh"
  done
}

need_lab() { [[ -f "$state/hostfile" ]] || fail "lab '$lab' is not up; begin with: $0 up"; }

# ---- up ------------------------------------------------------------------------------------------

make_namespace() {
  local name
  name="$(namespace_of "$1")"
  [[ ! -e "/run/netns/$name" ]] || fail "a network namespace '$name' exists that this script has" \
    "not recorded; if nobody needs it, remove it with: ip netns del $name"
  ip netns add "$name" || fail "this machine does not permit network namespaces"
  echo "$name $(inode_of "$name")" >>"$made"
  ip -n "$name" link set lo up
}

# The size of a link's token bucket in bytes: what it passes on in 500 us, but at least a packet with
# some room. An idle link gives a whole bucket away to the next message. From a smaller one packets
# leave more often, each time at the cost of the cores on which ranks compute, and long messages
# lose what passes while the kernel's timers are late.
bucket_of() {
  local bytes=$(($1 / 8 / 2000))
  echo $((bytes > 1600 ? bytes : 1600))
}

# The queue holds all that TCP lets hosts send at once, so that no packet is lost, as on the networks
# of clusters.
shape() {
  local namespace="$1" device="$2" rate="$3" bits="$4"
  tc -n "$namespace" qdisc add dev "$device" root handle 1: tbf rate "$rate" \
    burst "$(bucket_of "$bits")" limit 64mb
}

delay() {
  tc -n "$1" qdisc add dev eth0 parent 1:1 netem delay "$2" limit 100000 2>/dev/null ||
    fail "this kernel has no netem (CONFIG_NET_SCH_NETEM), which delays packets; leave --latency" \
      "away, or use a kernel that has it, as those of Debian and Ubuntu do"
}

# TCP always finds its window open, as on a network that loses nothing. Reno, which every kernel has,
# closes it for losses alone, and the queues lose nothing; bbr would leave a link idle while it finds
# out what the others have left of it.
set_tcp() {
  ip netns exec "$1" sh -c 'cd /proc/sys/net/ipv4 && echo reno >tcp_congestion_control &&
    echo 0 >tcp_slow_start_after_idle'
}

# Packets pass the links in groups that fill the bucket: cutting them is the work of a cluster's
# network cards, and would take the cores on which ranks compute here.
make_host() {
  local host="$1" rate="$2" bits="$3" latency="$4" switch namespace packets
  switch="$(namespace_of switch)" namespace="$(namespace_of "$host")"
  packets=$(($(bucket_of "$bits") / packet))
  make_namespace "$host"
  ip -n "$switch" link add "port$host" gso_max_segs "$packets" type veth \
    peer name eth0 netns "$namespace"
  ip -n "$namespace" link set eth0 gso_max_segs "$packets"
  ip -n "$switch" link set "port$host" master bridge up
  ip -n "$namespace" address add "$(address_of "$host")/16" dev eth0
  ip -n "$namespace" link set eth0 up
  set_tcp "$namespace"
  shape "$switch" "port$host" "$rate" "$bits"
  shape "$namespace" eth0 "$rate" "$bits"
  [[ -z "$latency" ]] || delay "$namespace" "$latency"
}

bits_of() {
  [[ "$1" =~ ^([1-9][0-9]{0,5})(kbit|mbit|gbit)$ ]] ||
    fail "--rate is '$1'; write a whole number and kbit, mbit or gbit, such as 100mbit"
  local -A factor=([kbit]=1000 [mbit]=1000000 [gbit]=1000000000)
  echo $((BASH_REMATCH[1] * factor[${BASH_REMATCH[2]}]))
}

number_of() {
  [[ "$2" =~ ^[1-9][0-9]{0,2}$ ]] || fail "$1 is '$2'; give a number from 1 to 999"
}

up() {
  local hosts="" ranks="" rate="" latency="" bits
  while (($# > 0)); do
    (($# > 1)) || fail "$1 has no value"
    case "$1" in
      --hosts) hosts="$2" ;;
      --ranks-per-host) ranks="$2" ;;
      --rate) rate="$2" ;;
      --latency) latency="$2" ;;
      *) fail "'up' has no option '$1'" ;;
    esac
    shift 2
  done
  number_of --hosts "$hosts"
  number_of --ranks-per-host "$ranks"
  bits="$(bits_of "$rate")"
  [[ -z "$latency" || "$latency" =~ ^[1-9][0-9]{0,5}(us|ms)$ ]] ||
    fail "--latency is '$latency'; write a whole number and us or ms, such as 1ms"

  mkdir -p "$(dirname "$state")"
  mkdir "$state" 2>/dev/null || fail "lab '$lab' is up already; first end it with: $0 down"
  trap remove EXIT
  ln -s "$script" "$agent"
  make_namespace switch
  ip -n "$(namespace_of switch)" link add bridge type bridge
  ip -n "$(namespace_of switch)" link set bridge up
  local host
  for ((host = 0; host < hosts; ++host)); do
    make_host "$host" "$rate" "$bits" "$latency"
    echo "$(address_of "$host") slots=$ranks" >>"$state/hosts"
  done
  mv "$state/hosts" "$state/hostfile"
  trap - EXIT
  echo "link_lab: $hosts hosts with $ranks ranks each, links of $rate${latency:+ and $latency}"
}

# ---- run -----------------------------------------------------------------------------------------

# Becomes the command, on the host with this address. A host has a name of its own, its address,
# because Open MPI finds files in /tmp and /dev/shm by it, which all hosts share.
enter() {
  local address="$1" host=0
  shift
  while [[ "$(address_of "$host")" != "$address" ]]; do
    ((++host < 1000)) || fail "no host has the address '$address'"
  done
  # shellcheck disable=SC2016  # the inner shell expands them
  exec nsenter --net="/run/netns/$(namespace_of "$host")" unshare --uts \
    sh -c 'hostname "$1" && shift && exec "$@"' sh "$address" "$@"
}

run() {
  [[ "${1:-}" != -- ]] || shift
  (($# > 0)) || fail "'run' needs a command: $0 run -- build/switchyard train CONFIG"
  need_lab
  local hosts slots ranks yield=0
  hosts="$(wc -l <"$state/hostfile")"
  slots="$(sed -n '1s/.*slots=//p' "$state/hostfile")"
  ranks=$((hosts * slots))
  ((ranks <= $(nproc))) || yield=1
  if [[ -z "${OMP_NUM_THREADS:-}" ]]; then
    export OMP_NUM_THREADS=$(($(nproc) > ranks ? $(nproc) / ranks : 1))
  fi
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  # Each daemon believes that its host has all cores for itself, so nothing may be bound to cores.
  enter "$(address_of 0)" mpirun -n "$ranks" --hostfile "$state/hostfile" --bind-to none \
    --mca plm_rsh_agent "$agent agent" --mca orte_keep_fqdn_hostnames 1 \
    --mca btl vader,tcp,self --mca btl_tcp_if_include "$subnet" \
    --mca oob_tcp_if_include "$subnet" --mca mpi_yield_when_idle "$yield" "$@"
}

# mpirun calls this in place of ssh: agent ADDRESS COMMAND...; a shell joins and reads the words.
agent() {
  local address="$1"
  shift
  enter "$address" sh -c "$*"
}

# ---- down ----------------------------------------------------------------------------------------

remove() {
  local name inode
  if [[ -f "$made" ]]; then
    while read -r name inode; do
      if [[ "$(inode_of "$name")" == "$inode" ]]; then
        ip netns del "$name"
      elif [[ -e "/run/netns/$name" ]]; then
        echo "link_lab: $name is not the namespace that this script made; it stays" >&2
      fi
    done <"$made"
  fi
  rm -rf "$state"
}

down() {
  [[ -d "$state" ]] || fail "lab '$lab' is not up"
  local name inode pids
  while read -r name inode; do
    [[ "$(inode_of "$name")" == "$inode" ]] || continue
    pids="$(ip netns pids "$name" | tr '\n' ' ')"
    [[ -z "$pids" ]] || fail "processes still run in $name: ${pids% }; end them first"
  done < <(cat "$made" 2>/dev/null)
  remove
}

action="${1:-}"
(($# == 0)) || shift
case "$action" in
  up | run | down | agent)
    check_machine
    "$action" "$@"
    ;;
  *) fail "say what to do: up, run or down ($script explains them)" ;;
esac
