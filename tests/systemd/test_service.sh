#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# Installs the build in a box with a real systemd (tests/lab/sdbox) and looks after the service
# there: that it starts, answers, reloads, and comes back after a crash and after a hang.
set -u
here=$(dirname "$(readlink -f "$0")")
top=$(dirname "$(dirname "$here")")
build=${EBB_BUILD:-$top/build}

if [ "${1-}" != --in-the-box ]; then
	if [ ! -x "$build/ebbd" ]; then
		echo "FAILED: no $build/ebbd"
		exit 1
	fi
	exec "$top/tests/lab/sdbox" -t 100 -- \
		env EBB_BUILD="$build" "$(readlink -f "$0")" --in-the-box
fi

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

cmake --install "$build" >/tmp/install.log 2>&1
ok "the build installs" $?
systemd-sysusers >/tmp/sysusers.log 2>&1 && getent group ebb >/dev/null
ok "the group for the sockets exists" $?
systemctl daemon-reload
unit=$(property FragmentPath)
same "systemd finds nothing wrong with the unit" "" \
	"$(systemd-analyze verify "$unit" 2>&1 | grep -F ebbd.service)"
echo "    $(systemd-analyze security --offline=yes "$unit" 2>/dev/null | grep -F Overall)"
systemd-analyze security --offline=yes --threshold=45 "$unit" >/dev/null 2>&1
ok "its exposure is at most 4.5 of 10" $?

systemctl start ebbd.service
ok "it starts and says READY" $?
answers
ok "it answers on the control socket" $?
[ -S /run/ebb/attach.sock ]
ok "the attach socket is there" $?
same "no new privileges" 1 "$(status_of NoNewPrivs)"
same "system calls are filtered" 2 "$(status_of Seccomp)"
same "the OOM killer leaves it alone" -1000 "$(cat "/proc/$(property MainPID)/oom_score_adj")"
[ $((0x$(status_of CapBnd) & 1 << 21)) = 0 ]
ok "CAP_SYS_ADMIN is out of reach" $?

pid=$(property MainPID)
systemctl reload ebbd.service
ok "it reloads" $?
until_true 10 answers
ok "and answers afterwards" $?
same "as the same process" "$pid" "$(property MainPID)"

kill -KILL "$pid"
until_true 20 restarted "$pid"
ok "after a crash it is back" $?
same "restarted once" 1 "$(property NRestarts)"

# A short watchdog for the test; the unit's own is long enough for a busy host.
mkdir -p /run/systemd/system/ebbd.service.d
printf '[Service]\nWatchdogSec=1\nWatchdogSignal=SIGKILL\n' \
	>/run/systemd/system/ebbd.service.d/watchdog.conf
systemctl daemon-reload
systemctl restart ebbd.service
ok "it restarts on request" $?
sleep 3
same "it feeds the watchdog" 0 "$(property NRestarts)"
pid=$(property MainPID)
kill -STOP "$pid"
until_true 30 restarted "$pid"
ok "after a hang the watchdog brings it back" $?

systemctl stop ebbd.service
ok "it stops" $?
same "and that is no failure" success "$(property Result)"
[ -d /run/ebb ]
ok "the folder of the sockets outlives it" $?
systemctl start ebbd.service && answers
ok "it starts again" $?
ebbctl quit >/dev/null
until_true 10 stopped
sleep 1
same "quit ends it for good" inactive "$(property ActiveState)"

if [ $fail != 0 ]; then
	systemctl status --no-pager ebbd.service
fi
exit $fail
