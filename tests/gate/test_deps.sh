#!/bin/bash
# SPDX-License-Identifier: BSD-3-Clause
# scripts/deps: installing starts no service, and the machine's policy about that comes back also
# when apt fails. Tried in a box, with an apt-get that looks and a dpkg-query that knows nothing.
set -u
top=$(dirname "$(dirname "$(dirname "$(readlink -f "$0")")")")

# shellcheck disable=SC2016 # the stand-ins for programs expand what is in single quotes
in_the_box()
{
	local bin deps=$top/scripts/deps policy=/usr/sbin/policy-rc.d fail=0
	bin=$(mktemp -d)
	printf '#!/bin/sh\ntrue\n' >"$bin/dpkg-query"
	printf '#!/bin/sh\n%s && echo "starts allowed"; exit "${APT_STATUS-0}"\n' $policy >"$bin/apt-get"
	chmod +x "$bin"/*
	PATH=$bin:$PATH

	expect() # WHAT GOT
	{
		if [ "$2" = "$3" ]; then
			echo "ok: $1"
		else
			echo "FAILED: $1: expected '$2', got '$3'"
			fail=1
		fi
	}

	rm -f $policy
	out=$("$deps" install </dev/null)
	expect "it installs" 0 $?
	expect "no service may start meanwhile" "" "$(grep allowed <<<"$out")"
	expect "no policy stays" no "$([ -e $policy ] && echo yes || echo no)"

	printf '#!/bin/sh\nexit 0 # mine\n' >$policy
	chmod 755 $policy
	out=$(APT_STATUS=100 "$deps" install </dev/null)
	expect "a failing apt-get fails it" 100 $?
	expect "the policy of before counts for nothing" "" "$(grep allowed <<<"$out")"
	expect "the policy of before is back" "exit 0 # mine" "$(tail -n 1 $policy)"
	expect "and nothing beside it" $policy "$(echo /usr/sbin/policy-rc.d*)"

	# Started in the background by a shell without job control, SIGINT would be ignored.
	printf '#!/bin/sh\nkill -TERM $PPID; sleep 0.2\n' >"$bin/apt-get"
	"$deps" install </dev/null >/dev/null
	expect "interrupted, it says so" 143 $?
	expect "the policy is back then, too" "exit 0 # mine" "$(tail -n 1 $policy)"

	rm "$bin/dpkg-query"
	printf '#!/bin/sh\necho called\n' >"$bin/apt-get"
	expect "with everything there, apt is not asked" "" "$("$deps" install </dev/null)"
	exit $fail
}

if [ "${1-}" = --in-the-box ]; then
	in_the_box
fi
exec "$top/tests/lab/sdbox" -- "$(readlink -f "$0")" --in-the-box
