#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Installs the build in a box with a real systemd (tests/lab/sdbox) and looks after the service
# there: that it starts, answers and reloads, that its restrictions take nothing away from VMs, and
# that it comes back after a crash and after a hang.
#
#   test_service.sh VM_PROGRAM
set -u
here=$(dirname "$(readlink -f "$0")")
top=$(dirname "$(dirname "$here")")
build=${EBB_BUILD:-$top/build}

if [ "${1-}" != --in-the-box ]; then
	if [ ! -x "$build/ebbd" ]; then
		echo "FAILED: no $build/ebbd"
		exit 1
	fi
	exec "$top/tests/lab/sdbox" -t 500 -- \
		env EBB_BUILD="$build" "$(readlink -f "$0")" --in-the-box "$1"
fi
vm_program=$2

fail=0
ok() # WHAT STATUS
{
	if [ "$2" = 0 ]; then
		echo "ok: $1"
	else
		echo "FAILED: $1"
		fail=1
	fi
}

same() # WHAT WANT GOT
{
	[ "$2" = "$3" ] || echo "    wanted '$2', got '$3'"
	[ "$2" = "$3" ]
	ok "$1" $?
}

# Waits until a command succeeds; the limit is against hanging, nothing is measured.
until_true() # SECONDS COMMAND...
{
	local left=$(($1 * 20))
	shift
	until "$@"; do
		left=$((left - 1))
		[ $left -gt 0 ] || return 1
		sleep 0.05
	done
}

property()
{
	systemctl show -P "$1" ebbd.service
}

answers()
{
	[ "$(property ActiveState)" = active ] && ebbctl query-version >/dev/null 2>&1
}

# Another process than before answers.
restarted() # PID
{
	answers && [ "$(property MainPID)" != "$1" ]
}

stopped()
{
	[ "$(property MainPID)" = 0 ]
}

status_of() # FIELD: of the main process
{
	sed -n "s/^$1:[[:space:]]*//p" "/proc/$(property MainPID)/status"
}

# What the daemon found that it can do; the part of query-host that does not change.
abilities()
{
	ebbctl "$@" query-host | grep -E '^(uffd-features|probe|zap-scan|collapse|poison|userfault)'
}

# A VM (vm.c) of a user, attached to the service. One at a time; its input and output are vm_in
# and vm_out.
start_vm() # NAME USER
{
	local answer
	coproc vm {
		exec env EBB_SOCKET=/run/ebb/attach.sock EBB_NAME="$1" EBB_MIN_SIZE=1M \
			LD_PRELOAD="$build/libebb-attach.so" \
			setpriv --reuid "$2" --regid "$2" --groups ebb "$vm_program" 64
	}
	vm_out=${vm[0]} vm_in=${vm[1]} vm_pid=${vm_PID:?}
	read -r answer <&"$vm_out"
	same "the VM is there" ready "$answer"
	until_true 20 ebbctl query-vm "$1" >/dev/null 2>&1
	ok "the VM $1 of user $2 attaches" $?
}

# One that keeps nothing for the daemon: what it would lose is in systemd's store.
start_plain_vm() # NAME
{
	local answer
	coproc vm {
		exec "$vm_program" 64 /run/ebb/attach.sock "$1"
	}
	vm_out=${vm[0]} vm_in=${vm[1]} vm_pid=${vm_PID:?}
	read -r answer <&"$vm_out"
	same "the VM is there, and keeps nothing itself" ready "$answer"
}

stored_fds()
{
	property NFileDescriptorStore
}

stored_are() # NUMBER
{
	[ "$(stored_fds)" = "$1" ]
}

ask_vm() # QUESTION
{
	local answer
	echo "$1" >&"$vm_in"
	read -r answer <&"$vm_out"
	echo "$answer"
}

reclaim_vm() # NAME
{
	local kib
	until_true 20 ebbctl vm-reclaim "$1" bytes=48M >/dev/null 2>&1
	ok "memory of it can be taken" $?
	kib=$(ask_vm resident)
	[ "$kib" -le $((24 << 10)) ]
	ok "which shows in its memfd ($kib KiB of 65536 left)" $?
}

end_vm()
{
	exec {vm_in}>&-
	wait "$vm_pid"
	same "the VM ends by itself" 0 $?
}

# The daemon that is there now has the VM as the one before left it.
vm_came_through() # NAME
{
	local kib
	until_true 20 ebbctl query-vm "$1" >/dev/null 2>&1
	ok "the VM is taken over" $?
	kib=$(ask_vm resident)
	[ "$kib" -le $((24 << 10)) ]
	ok "with what was evicted still evicted ($kib KiB of 65536 left)" $?
	same "and every page comes back as it was" 0 "$(ask_vm check)"
}

try_vm() # NAME USER
{
	start_vm "$1" "$2"
	reclaim_vm "$1"
	same "and every page comes back as it was" 0 "$(ask_vm check)"
	end_vm
}

cmake --install "$build" >/tmp/install.log 2>&1
ok "the build installs" $?
systemd-sysusers >/tmp/sysusers.log 2>&1 && getent group ebb >/dev/null
ok "the group for the sockets exists" $?
systemctl daemon-reload
unit=$(property FragmentPath)
same "systemd finds nothing wrong with the unit" "" \
	"$(systemd-analyze verify --man=no "$unit" 2>&1 | grep -F ebbd.service)"
echo "    $(systemd-analyze security --offline=yes "$unit" 2>/dev/null | grep -F Overall)"
systemd-analyze security --offline=yes --threshold=40 "$unit" >/dev/null 2>&1
ok "its exposure is at most 4.0 of 10" $?

mkdir -p /etc/ebb
echo 'socket-group = ebb' >/etc/ebb/ebbd.conf
systemctl start ebbd.service
ok "it starts and says READY" $?
answers
ok "it answers on the control socket" $?
[ -S /run/ebb/attach.sock ]
ok "the attach socket is there" $?
same "no new privileges" 1 "$(status_of NoNewPrivs)"
same "system calls are filtered" 2 "$(status_of Seccomp)"
same "the group may use the sockets" "660 ebb 660 ebb" \
	"$(stat -c '%a %G' /run/ebb/{attach,control}.sock | tr '\n' ' ' | sed 's/ $//')"
if [ $((0x$(sed -n 's/^CapEff:\t//p' /proc/1/status) & 1 << 24)) != 0 ]; then
	same "the OOM killer leaves it alone" -1000 \
		"$(cat "/proc/$(property MainPID)/oom_score_adj")"
else
	same "the OOM killer is told to leave it alone (but may not be, on this machine)" -1000 \
		"$(property OOMScoreAdjust)"
fi
[ $((0x$(status_of CapBnd) & 1 << 21)) = 0 ]
ok "CAP_SYS_ADMIN is out of reach" $?

mkdir /run/plain
"$build/ebbd" --runtime-dir /run/plain 2>/run/plain/log &
until_true 20 ebbctl --socket /run/plain/control.sock query-version >/dev/null 2>&1
same "it can do all that a daemon without its restrictions can" \
	"$(abilities --socket /run/plain/control.sock)" "$(abilities)"
ebbctl --socket /run/plain/control.sock quit >/dev/null
wait $!
try_vm vm-root 0
try_vm vm-nobody 65534

# One VM for all that follows; half of it is evicted each time.
start_vm vm-kept 65534
reclaim_vm vm-kept
pid=$(property MainPID)
systemctl reload ebbd.service
ok "it reloads" $?
until_true 20 restarted "$pid"
ok "and answers afterwards, as another process" $?
same "which is no restart" 0 "$(property NRestarts)"
same "and nobody's child but the manager's" 1 "$(status_of PPid)"
vm_came_through vm-kept
reclaim_vm vm-kept
mv "$(command -v ebbd)" /run/ebbd.away
if systemctl reload ebbd.service; then
	ok "a reload that cannot be fails" 1
else
	ok "a reload that cannot be fails" 0
fi
mv /run/ebbd.away "$(dirname "$(command -v ebbctl)")/ebbd"
until_true 10 answers
ok "and it goes on" $?
vm_came_through vm-kept

reclaim_vm vm-kept
pid=$(property MainPID)
kill -KILL "$pid"
until_true 20 restarted "$pid"
ok "after a crash it is back" $?
same "restarted once" 1 "$(property NRestarts)"
vm_came_through vm-kept

reclaim_vm vm-kept
pid=$(property MainPID)
kill -ABRT "$pid"
until_true 20 restarted "$pid"
ok "after an abort it is back" $?
vm_came_through vm-kept

# A policy that crashes, and whose setting survives, so that it crashes again.
reclaim_vm vm-kept
plugins=$(sed -n 's,.* \(/.*/policies\)/clock\.so$,\1,p' /tmp/install.log)
install -m 644 "$build/tests/policies/crash.so" "$plugins/"
ok "a policy is installed" $?
ebbctl policy-set vm-kept role=reclaim policy=crash in=tick >/dev/null
put_aside()
{
	ebbctl --json query-vm vm-kept 2>/dev/null | grep -q '"policy-failure": *"policy crash'
}
until_true 40 put_aside
ok "after two crashes in a policy the daemon comes back without it" $?
vm_came_through vm-kept
ebbctl policy-set vm-kept role=reclaim policy=clock >/dev/null
ok "and takes another one" $?

# A short watchdog for the test; the unit's own is long enough for a busy host.
mkdir -p /run/systemd/system/ebbd.service.d
printf '[Service]\nWatchdogSec=3\nWatchdogSignal=SIGKILL\n' \
	>/run/systemd/system/ebbd.service.d/watchdog.conf
systemctl daemon-reload
reclaim_vm vm-kept
systemctl restart ebbd.service
ok "it restarts on request" $?
vm_came_through vm-kept
sleep 4
same "it feeds the watchdog" 0 "$(property NRestarts)"
reclaim_vm vm-kept
pid=$(property MainPID)
kill -STOP "$pid"
until_true 30 restarted "$pid"
ok "after a hang the watchdog brings it back" $?
vm_came_through vm-kept
# What follows is not to be killed for being slow: from the next start on.
rm /run/systemd/system/ebbd.service.d/watchdog.conf
systemctl daemon-reload

reclaim_vm vm-kept
systemctl stop ebbd.service
ok "it stops" $?
same "and that is no failure" success "$(property Result)"
[ -d /run/ebb ]
ok "the folder of the sockets outlives it" $?
systemctl start ebbd.service && answers
ok "it starts again" $?
vm_came_through vm-kept

end_vm
same "of a VM that keeps its state itself systemd holds nothing" 0 "$(stored_fds)"

# A VM whose client has no library: the fd store is all that is left of it.
start_plain_vm vm-plain
reclaim_vm vm-plain
stored=$(stored_fds)
[ "$stored" -ge 7 ]
ok "systemd holds its state ($stored descriptors)" $?
pid=$(property MainPID)
kill -KILL "$pid"
until_true 20 restarted "$pid"
ok "after a crash it is back" $?
vm_came_through vm-plain
until_true 20 stored_are "$stored"
ok "and no more is stored than before" $?
ebbctl vm-set vm-plain limit=20M >/dev/null
reclaim_vm vm-plain
pid=$(property MainPID)
systemctl restart ebbd.service
ok "it restarts on request" $?
vm_came_through vm-plain
same "with the VM's settings" 20971520 "$(ebbctl --json query-vm vm-plain |
	sed -n 's/.*"limit-bytes": *\([0-9]*\).*/\1/p')"
ebbctl vm-set vm-plain limit=0 >/dev/null
reclaim_vm vm-plain
pid=$(property MainPID)
systemctl reload ebbd.service
until_true 20 restarted "$pid"
ok "it takes part in an upgrade" $?
vm_came_through vm-plain
reclaim_vm vm-plain
pid=$(property MainPID)
kill -KILL "$pid"
until_true 20 restarted "$pid"
vm_came_through vm-plain
end_vm
until_true 20 stored_are 0
ok "when the VM ends, nothing of it is stored" $?
# One that ends while there is no daemon.
start_plain_vm vm-plain2
reclaim_vm vm-plain2
printf '[Service]\nRestartSec=3\n' >/run/systemd/system/ebbd.service.d/later.conf
systemctl daemon-reload
pid=$(property MainPID)
kill -KILL "$pid"
kill -KILL "$vm_pid"
wait "$vm_pid" 2>/dev/null
until_true 20 restarted "$pid"
until_true 20 stored_are 0
ok "of a VM that ended meanwhile nothing is stored either" $?
rm /run/systemd/system/ebbd.service.d/later.conf
systemctl daemon-reload

start_vm vm-last 65534
reclaim_vm vm-last
ebbctl quit drain=true >/dev/null
until_true 10 stopped
sleep 1
same "quit ends it for good" inactive "$(property ActiveState)"
same "with drain, all memory is back" 65536 "$(ask_vm resident)"
same "as it was" 0 "$(ask_vm check)"
end_vm

if [ $fail != 0 ]; then
	systemctl status --no-pager ebbd.service
fi
exit $fail
