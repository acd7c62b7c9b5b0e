#!/usr/bin/env bash
# Slurm of one node on the loopback address, for tests/test_submit.py: slurm_here.sh start|stop FOLDER
# Root and Debian's packages slurm-wlm and munge are needed; they are installed where they are missing.
# Everything else lives in FOLDER. Two jobs run at a time, whatever the machine has.
set -euo pipefail
action=$1 here=$(realpath -m "$2")
conf=$here/slurm.conf

install() {
  command -v slurmctld srun munged >/dev/null && return
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
}

configure() {
  local name memory
  name=$(hostname -s)
  memory=$(awk '/MemTotal/ { print int($2 / 2048) }' /proc/meminfo)
  mkdir -p "$here/state" "$here/spool"
  chmod 755 "$here"
  cat >"$conf" <<EOF
ClusterName=tests
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmctldPort=17017
SlurmdPort=17018
AuthType=auth/munge
AuthInfo=socket=$here/munge.socket,cred_expire=5
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=0
KillWait=20
ReturnToService=2
NodeName=$name NodeAddr=127.0.0.1 CPUs=2 RealMemory=$memory State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
EOF
}

start() {
  install
  configure
  (umask 077 && head -c 256 /dev/urandom >"$here/munge.key")
  munged --force --num-threads=1 --key-file="$here/munge.key" --socket="$here/munge.socket" \
    --pid-file="$here/munged.pid" --log-file="$here/munged.log" --seed-file="$here/munge.seed"
  slurmctld -f "$conf"
  slurmd -f "$conf"
  for _ in $(seq 60); do
    SLURM_CONF=$conf sinfo --noheader --format=%T 2>/dev/null | grep -q idle && return
    sleep 0.5
  done
  tail -n 3 "$here"/*.log >&2
  return 1
}

stop() {
  for daemon in slurmd slurmctld munged; do
    [ ! -s "$here/$daemon.pid" ] || kill "$(cat "$here/$daemon.pid")" 2>/dev/null || true
  done
}

PATH=$PATH:/usr/sbin:/sbin
case $action in
  start) start ;;
  stop) stop ;;
  *) echo "usage: slurm_here.sh start|stop FOLDER" >&2 && exit 2 ;;
esac
